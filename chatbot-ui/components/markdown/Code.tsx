"use client";

import { useDeferredValue } from "react";
import { lazyModule } from "@/lib/ui/lazy";
import { CopyButton } from "@/components/ui/CopyButton";

/** The highlighter is fetched when the first code is shown. */
const useHighlighter = lazyModule(() => import("@/lib/ui/highlight"));

/** A block of code with its language and a way to copy it. */
export function Code({ language, text }: { language?: string; text: string }) {
  const highlighter = useHighlighter();
  const shown = useDeferredValue(text.replace(/\n$/, ""));
  return (
    <figure className="code">
      <figcaption>
        <span>{language ?? "text"}</span>
        <CopyButton text={text} title="Copy code" />
      </figcaption>
      <pre tabIndex={0} role="group" aria-label={language ? `Code in ${language}` : "Code"}>
        <code>{highlighter ? highlighter.highlight(shown, language) : shown}</code>
      </pre>
    </figure>
  );
}
