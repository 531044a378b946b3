import { toJsxRuntime } from "hast-util-to-jsx-runtime";
import { common, createLowlight } from "lowlight";
import type { ReactNode } from "react";
import { Fragment, jsx, jsxs } from "react/jsx-runtime";

const lowlight = createLowlight(common);

/** Code as coloured spans; as it is where the language is not known. */
export function highlight(text: string, language: string | undefined): ReactNode {
  const name = language?.toLowerCase();
  if (!name || !lowlight.registered(name)) return text;
  return toJsxRuntime(lowlight.highlight(name, text), { Fragment, jsx, jsxs });
}
