"use client";

import { Check, Copy } from "lucide-react";
import { useId, useState } from "react";
import { copy } from "@/lib/clipboard";

/** Something to be typed elsewhere, with a button that copies it. */
export function Command({ text, name, disabled }: { text: string; name: string; disabled?: boolean }) {
  const [done, setDone] = useState(false);
  const id = useId();
  const onClick = async () => {
    await copy(text);
    setDone(true);
    setTimeout(() => setDone(false), 2000);
  };
  return (
    <figure className="code command">
      <figcaption id={id}>
        <span>{name}</span>
        <button onClick={onClick} disabled={disabled}>
          {done ? <Check aria-hidden /> : <Copy aria-hidden />} {done ? "Copied" : "Copy"}
        </button>
      </figcaption>
      <pre tabIndex={0} role="group" aria-labelledby={id}>
        <code>{text}</code>
      </pre>
    </figure>
  );
}
