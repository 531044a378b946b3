"use client";

import { Check, Copy } from "lucide-react";
import { useDeferredValue, useEffect, useState, type ReactNode } from "react";
import { copy } from "@/lib/clipboard";

type Highlight = (text: string, language: string | undefined) => ReactNode;

let highlight: Highlight | undefined;
let loading: Promise<void> | undefined;

/** The highlighter is fetched when the first code is shown. */
function useHighlight(): Highlight | undefined {
  const [loaded, setLoaded] = useState(() => highlight);
  useEffect(() => {
    if (loaded) return;
    loading ??= import("@/lib/highlight").then((module) => void (highlight = module.highlight));
    loading.then(() => setLoaded(() => highlight)).catch(() => (loading = undefined));
  }, [loaded]);
  return loaded;
}

/** A block of code with its language and a way to copy it. */
export function Code({ language, text }: { language?: string; text: string }) {
  const paint = useHighlight();
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
        <code>{paint ? paint(shown, language) : shown}</code>
      </pre>
    </figure>
  );
}
