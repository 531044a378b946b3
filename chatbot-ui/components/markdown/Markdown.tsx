"use client";

import type { TextMessagePartComponent } from "@assistant-ui/react";
import { lazyModule } from "@/lib/ui/lazy";

const useProse = lazyModule(() => import("./Prose"));

/** The text of an answer. What reads Markdown is fetched with the first one; until then the text stands as it is. */
export const Markdown: TextMessagePartComponent = ({ text }) => {
  const part = useProse();
  return part ? <part.Prose text={text} /> : <p className="plain">{text}</p>;
};
