"use client";

import { AuiIf, ComposerPrimitive, ThreadPrimitive, useAuiState } from "@assistant-ui/react";
import { ArrowDown, ArrowUp, Download, SlidersHorizontal, Square } from "lucide-react";
import { useState } from "react";
import { download } from "@/lib/ui/clipboard";
import { exported, textOf } from "@/lib/storage/library";
import { useApp } from "@/lib/state/app";
import type { ChatThread } from "@/lib/chat/thread";
import { ChatSettingsDialog } from "./ChatSettingsDialog";
import { AssistantMessage, EditedMessage, UserMessage } from "./Message";
import { ModelPicker } from "./ModelPicker";

const SUGGESTIONS = [
  "What is the capital of France?",
  "Write a short poem about the sea.",
  "Write a Python function that reverses a string.",
];

/** The conversation that is shown: its messages, and where the next one is written. */
export function Thread({ id, chatThread }: { id: string; chatThread: ChatThread }) {
  const [tuning, setTuning] = useState(false);
  const head = useApp((state) => state.heads.find((each) => each.id === id));
  return (
    <ThreadPrimitive.Root className="thread">
      <header className="bar">
        <ModelPicker />
        <span className="gap" />
        {head && (
          <button
            className="icon"
            aria-label="Export this chat"
            title="Export this chat"
            onClick={async () => download("chat.json", await exported([head]))}
          >
            <Download aria-hidden />
          </button>
        )}
        <button className="icon" aria-label="Chat settings" title="Chat settings" onClick={() => setTuning(true)}>
          <SlidersHorizontal aria-hidden />
        </button>
      </header>
      <ThreadPrimitive.Viewport className="messages" tabIndex={0} role="region" aria-label="Messages">
        <AuiIf condition={(state) => state.thread.messages.length === 0 && !state.thread.isLoading}>
          <Welcome />
        </AuiIf>
        <ThreadPrimitive.Messages>
          {({ message }) =>
            message.composer.isEditing ? <EditedMessage /> : message.role === "user" ? <UserMessage /> : <AssistantMessage />
          }
        </ThreadPrimitive.Messages>
      </ThreadPrimitive.Viewport>
      <footer className="foot">
        <ThreadPrimitive.ScrollToBottom className="icon float" aria-label="To the newest message">
          <ArrowDown aria-hidden />
        </ThreadPrimitive.ScrollToBottom>
        <Composer />
      </footer>
      <Announcer />
      {tuning && <ChatSettingsDialog chatThread={chatThread} close={() => setTuning(false)} />}
    </ThreadPrimitive.Root>
  );
}

function Welcome() {
  const { models, asked, problem } = useApp();
  const usable = models.some((model) => model.complete);
  if (problem) return <p className="welcome bad">{problem}</p>;
  if (!asked) return <div className="welcome" />;
  if (!usable) {
    return (
      <div className="welcome">
        <h2>{models.length ? "Some blocks have no server yet" : "Waiting for the first server"}</h2>
        <p className="quiet">
          {models.length
            ? "A model can be asked once every block of it is served. "
            : "This gateway is running, but no machine of its swarm serves a model yet. "}
          <a href="#swarm">See the swarm</a>
        </p>
      </div>
    );
  }
  return (
    <div className="welcome">
      <h2>What would you like to know?</h2>
      <p className="quiet">The machines of this swarm compute the answer together.</p>
      <div className="suggestions">
        {SUGGESTIONS.map((prompt) => (
          <ThreadPrimitive.Suggestion key={prompt} prompt={prompt} send>
            {prompt}
          </ThreadPrimitive.Suggestion>
        ))}
      </div>
    </div>
  );
}

function Composer() {
  const usable = useApp((state) => state.models.some((model) => model.complete));
  return (
    <ComposerPrimitive.Root className="composer">
      <ComposerPrimitive.Input
        autoFocus
        rows={1}
        maxRows={10}
        placeholder="Message"
        aria-label="Message"
        unstable_insertNewlineOnTouchEnter
      />
      <AuiIf condition={(state) => !state.thread.isRunning}>
        <ComposerPrimitive.Send className="icon send" aria-label="Send" disabled={usable ? undefined : true}>
          <ArrowUp aria-hidden />
        </ComposerPrimitive.Send>
      </AuiIf>
      <AuiIf condition={(state) => state.thread.isRunning}>
        <ComposerPrimitive.Cancel className="icon send" aria-label="Stop" title="Esc">
          <Square aria-hidden fill="currentColor" />
        </ComposerPrimitive.Cancel>
      </AuiIf>
    </ComposerPrimitive.Root>
  );
}

/** Tells screen readers that an answer has begun, and reads it out when it is complete rather than word by word. */
function Announcer() {
  const running = useAuiState((state) => state.thread.isRunning);
  const last = useAuiState((state) => state.thread.messages.at(-1));
  const [opened] = useState(() => Date.now());
  const made = last?.role === "assistant" && last.createdAt.getTime() > opened;
  return (
    <div className="visually-hidden" role="status">
      {running ? "Answering." : made ? textOf(last) || "No answer." : ""}
    </div>
  );
}
