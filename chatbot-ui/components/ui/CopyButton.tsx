"use client";

import { Check, Copy } from "lucide-react";
import { useState } from "react";
import { copy } from "@/lib/ui/clipboard";

const SAID = 2000; // ms for which the button says that it is done

interface Props {
  text: string;
  /** What stands on the button; without it there is a picture only. */
  title?: string;
  disabled?: boolean;
}

/** Copies a text, and says so. */
export function CopyButton({ text, title, disabled }: Props) {
  const [done, setDone] = useState(false);
  const onClick = async () => {
    await copy(text);
    setDone(true);
    setTimeout(() => setDone(false), SAID);
  };
  const picture = done ? <Check aria-hidden /> : <Copy aria-hidden />;
  if (title) {
    return (
      <button onClick={onClick} disabled={disabled}>
        {picture} {done ? "Copied" : title}
      </button>
    );
  }
  return (
    <button className="icon" aria-label={done ? "Copied" : "Copy"} title="Copy" onClick={onClick} disabled={disabled}>
      {picture}
    </button>
  );
}
