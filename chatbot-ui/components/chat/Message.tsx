"use client";

import {
  ActionBarPrimitive,
  AuiIf,
  BranchPickerPrimitive,
  ComposerPrimitive,
  MessagePrimitive,
  useAuiState,
} from "@assistant-ui/react";
import { ChevronLeft, ChevronRight, Gauge, Pencil, RefreshCw, Shuffle } from "lucide-react";
import { useState } from "react";
import { textOf } from "@/lib/storage/library";
import type { GenerationTrace } from "@/lib/storage/types";
import { CopyButton } from "@/components/ui/CopyButton";
import { GenerationPanel } from "./GenerationPanel";
import { Markdown } from "@/components/markdown/Markdown";

export function UserMessage() {
  return (
    <MessagePrimitive.Root className="message user" role="article" aria-label="You">
      <div className="bubble">
        <MessagePrimitive.Parts components={{ Text: ({ text }) => <p className="plain">{text}</p> }} />
      </div>
      <div className="tools">
        <Branches />
        <CopyText />
        <ActionBarPrimitive.Edit className="icon" aria-label="Edit and ask again" title="Edit and ask again">
          <Pencil aria-hidden />
        </ActionBarPrimitive.Edit>
      </div>
    </MessagePrimitive.Root>
  );
}

export function EditedMessage() {
  return (
    <MessagePrimitive.Root className="message user editing" role="article" aria-label="You">
      <ComposerPrimitive.Root className="edit">
        <ComposerPrimitive.Input autoFocus maxRows={12} aria-label="Edit your message" />
        <div className="actions">
          <ComposerPrimitive.Cancel>Keep as it was</ComposerPrimitive.Cancel>
          <ComposerPrimitive.Send className="main">Ask again</ComposerPrimitive.Send>
        </div>
      </ComposerPrimitive.Root>
    </MessagePrimitive.Root>
  );
}

export function AssistantMessage() {
  const making = useAuiState((state) => state.message.metadata.custom.making as GenerationTrace | undefined);
  const status = useAuiState((state) => state.message.status);
  const empty = useAuiState((state) => !textOf(state.message));
  const [shown, setShown] = useState(false);
  const running = status?.type === "running";
  const notes = [...new Set(making?.notes)];
  return (
    <MessagePrimitive.Root className="message assistant" role="article" aria-label="Answer">
      <div className={running && !empty ? "words growing" : "words"}>
        <MessagePrimitive.Parts components={{ Text: Markdown, Empty: Waiting }} />
      </div>
      {notes.length > 0 && (
        <ul className="notes" aria-label="What happened on the way">
          {notes.map((note) => (
            <li key={note}>
              <Shuffle aria-hidden />
              <span>{told(note, status?.type === "complete")}</span>
            </li>
          ))}
        </ul>
      )}
      {status?.type === "incomplete" && status.reason === "cancelled" && <p className="note">Stopped.</p>}
      {status?.type === "incomplete" && status.reason === "error" && (
        <p className="problem" role="alert">
          {errorText(status.error)}
        </p>
      )}
      {making?.finish === "length" && <p className="note">The answer reached its greatest length.</p>}
      {!running && (
        <div className="tools">
          <Branches />
          <CopyText />
          <ActionBarPrimitive.Reload className="icon" aria-label="Answer again" title="Answer again">
            <RefreshCw aria-hidden />
          </ActionBarPrimitive.Reload>
          {making && (
            <button
              className="icon"
              aria-label="How this answer was made"
              title="How this answer was made"
              aria-expanded={shown}
              onClick={() => setShown(!shown)}
            >
              <Gauge aria-hidden />
            </button>
          )}
        </div>
      )}
      {shown && making && !running && <GenerationPanel making={making} />}
    </MessagePrimitive.Root>
  );
}

function Waiting() {
  const status = useAuiState((state) => state.message.status);
  if (status?.type !== "running") return null;
  return (
    <span className="waiting" role="img" aria-label="Waiting for the first word">
      <i />
      <i />
      <i />
    </span>
  );
}

function CopyText() {
  const text = useAuiState((state) => textOf(state.message));
  return text ? <CopyButton text={text} /> : null;
}

function Branches() {
  return (
    <AuiIf condition={(state) => state.message.branchCount > 1}>
      <BranchPickerPrimitive.Root className="branches">
        <BranchPickerPrimitive.Previous className="icon" aria-label="The version before">
          <ChevronLeft aria-hidden />
        </BranchPickerPrimitive.Previous>
        <span>
          <BranchPickerPrimitive.Number /> / <BranchPickerPrimitive.Count />
        </span>
        <BranchPickerPrimitive.Next className="icon" aria-label="The next version">
          <ChevronRight aria-hidden />
        </BranchPickerPrimitive.Next>
      </BranchPickerPrimitive.Root>
    </AuiIf>
  );
}

/** A notice of the swarm as a sentence; `done`: of an answer that is complete. */
function told(notice: string, done: boolean): string {
  const note = done ? notice.replace(/; looking for another$/, "; another one went on with the answer") : notice;
  return `${note.charAt(0).toUpperCase()}${note.slice(1)}${/[.!?]$/.test(note) ? "" : "."}`;
}

function errorText(error: unknown): string {
  if (typeof error === "string") return error;
  return String((error as { message?: unknown } | undefined)?.message ?? "The answer failed.");
}
