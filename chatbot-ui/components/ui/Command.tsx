"use client";

import { useId } from "react";
import { CopyButton } from "./CopyButton";

/** Something to be typed elsewhere, with a button that copies it. */
export function Command({ text, name, disabled }: { text: string; name: string; disabled?: boolean }) {
  const id = useId();
  return (
    <figure className="code command">
      <figcaption id={id}>
        <span>{name}</span>
        <CopyButton text={text} title="Copy" disabled={disabled} />
      </figcaption>
      <pre tabIndex={0} role="group" aria-labelledby={id}>
        <code>{text}</code>
      </pre>
    </figure>
  );
}
