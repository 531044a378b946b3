"use client";

import { memo, type ReactNode } from "react";
import ReactMarkdown, { type Components } from "react-markdown";
import remarkGfm from "remark-gfm";
import { Code } from "./Code";

const plugins = [remarkGfm];

/** Nothing is loaded from elsewhere: an image of an answer is shown as a link to it. */
const components: Components = {
  a: ({ href, children }) => (
    <a href={href} target="_blank" rel="noopener noreferrer nofollow">
      {children}
    </a>
  ),
  img: ({ src, alt }) => (
    <a href={typeof src === "string" ? src : undefined} target="_blank" rel="noopener noreferrer nofollow">
      {alt || "image"}
    </a>
  ),
  pre: ({ children }) => <>{children}</>,
  code: ({ className, children }) => {
    const text = plain(children);
    const language = /language-([\w+#-]+)/.exec(className ?? "")?.[1];
    return language || text.includes("\n") ? <Code language={language} text={text} /> : <code>{children}</code>;
  },
  table: ({ children }) => (
    <div className="table" tabIndex={0} role="region" aria-label="Table">
      <table>{children}</table>
    </div>
  ),
};

const plain = (children: ReactNode): string => (Array.isArray(children) ? children.join("") : String(children ?? ""));

/** Markdown as a page shows it. */
export const Prose = memo(function Prose({ text }: { text: string }) {
  return (
    <ReactMarkdown remarkPlugins={plugins} components={components}>
      {text}
    </ReactMarkdown>
  );
});
