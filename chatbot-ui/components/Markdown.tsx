"use client";

import type { TextMessagePartComponent } from "@assistant-ui/react";
import { lazy, Suspense } from "react";

const load = () => import("./Prose").then((module) => ({ default: module.Prose }));
const Prose = lazy(load);

/** The text of an answer. What reads Markdown is fetched with the first one; until then the text stands as it is. */
export const Markdown: TextMessagePartComponent = ({ text }) => (
  <Suspense fallback={<p className="plain">{text}</p>}>
    <Prose text={text} />
  </Suspense>
);
