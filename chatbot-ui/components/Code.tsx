"use client";

import { Check, Copy } from "lucide-react";
import { useDeferredValue, useState } from "react";
import { copy } from "@/lib/clipboard";
import { later } from "@/lib/later";

/** The highlighter is fetched when the first code is shown. */
const useHighlighter = later(() => import("@/lib/highlight"));

/** A block of code with its language and a way to copy it. */
export function Code({ language, text }: { language?: string; text: string }) {
  const highlighter = useHighlighter();
  const shown = useDeferredValue(text.replace(/\n$/, ""));
  const [done, setDone] = useState(false);
  const onCopy = async () => {
    await copy(text);
    setDone(true);
    setTimeout(() => setDone(false), 2000);
  };
  return (
    <figure className="code">
      <figcaption>
        <span>{language ?? "text"}</span>
        <button onClick={onCopy}>
          {done ? <Check aria-hidden /> : <Copy aria-hidden />} {done ? "Copied" : "Copy code"}
        </button>
      </figcaption>
      <pre tabIndex={0} role="group" aria-label={language ? `Code in ${language}` : "Code"}>
        <code>{highlighter ? highlighter.highlight(shown, language) : shown}</code>
      </pre>
    </figure>
  );
}
