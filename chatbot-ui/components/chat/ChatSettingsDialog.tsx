"use client";

import { useState } from "react";
import type { Sampling } from "@/lib/api/gateway";
import { saveDefaults } from "@/lib/state/app";
import type { ChatThread } from "@/lib/chat/thread";
import { Dialog } from "@/components/ui/Dialog";

const FIELDS: { name: keyof Sampling; title: string; hint: string; min: number; max: number; step: number }[] = [
  { name: "temperature", title: "Temperature", hint: "0 always takes the likeliest token", min: 0, max: 2, step: 0.05 },
  { name: "top_p", title: "Top p", hint: "share of likely tokens to choose from", min: 0, max: 1, step: 0.05 },
  { name: "top_k", title: "Top k", hint: "so many tokens to choose from; 0: any", min: 0, max: 1000, step: 1 },
  { name: "repetition_penalty", title: "Repetition penalty", hint: "above 1 avoids repeating", min: 0.5, max: 2, step: 0.05 },
  { name: "max_tokens", title: "Greatest length", hint: "in tokens", min: 1, max: 1_000_000, step: 1 },
  { name: "seed", title: "Seed", hint: "the same seed gives the same answer", min: 0, max: 2 ** 31 - 1, step: 1 },
];

/** The system prompt and the sampling of one conversation. An empty field is left to the gateway. */
export function ChatSettingsDialog({ chatThread, close }: { chatThread: ChatThread; close: () => void }) {
  const [draft, setDraft] = useState(chatThread.settings);
  const [always, setAlways] = useState(false);
  const set = (name: keyof Sampling, text: string) => {
    const sampling = { ...draft.sampling };
    const value = Number(text);
    if (text === "" || Number.isNaN(value)) delete sampling[name];
    else sampling[name] = value;
    setDraft({ ...draft, sampling });
  };
  return (
    <Dialog title="Chat settings" close={close}>
      <form
        onSubmit={(event) => {
          event.preventDefault();
          chatThread.change(draft);
          if (always) void saveDefaults(draft);
          close();
        }}
      >
        <label className="field">
          System prompt
          <textarea
            rows={4}
            placeholder="How the model should behave, for example: You are a patient teacher."
            value={draft.system}
            onChange={(event) => setDraft({ ...draft, system: event.target.value })}
          />
        </label>
        <div className="grid">
          {FIELDS.map(({ name, title, hint, ...range }) => (
            <label className="field" key={name}>
              {title}
              <input
                type="number"
                {...range}
                placeholder="as the gateway has it"
                value={draft.sampling[name] ?? ""}
                onChange={(event) => set(name, event.target.value)}
              />
              <small>{hint}</small>
            </label>
          ))}
        </div>
        <label className="tick">
          <input type="checkbox" checked={always} onChange={(event) => setAlways(event.target.checked)} /> For new chats as
          well
        </label>
        <div className="actions">
          <button type="button" onClick={close}>
            Cancel
          </button>
          <button className="main" type="submit">
            Use
          </button>
        </div>
      </form>
    </Dialog>
  );
}
