import type { ChatModelAdapter, ExportedMessageRepository, ThreadHistoryAdapter, ThreadRuntime } from "@assistant-ui/react";
import { modelAdapter } from "./adapter";
import * as library from "@/lib/storage/library";
import { save, setRunning, useApp } from "@/lib/state/app";
import type { Body, ChatSettings } from "@/lib/storage/types";

const SAVE_AFTER = 300; // ms without a change

const digest = (saved: ExportedMessageRepository) => ({
  headId: saved.headId ?? "",
  messages: JSON.stringify(saved.messages),
});

/** What a conversation is beside its messages: its settings, who answers, and how it is kept on this device. */
export class ChatThread {
  settings: ChatSettings = useApp.getState().defaults;
  readonly adapter: ChatModelAdapter;
  readonly history: ThreadHistoryAdapter;
  private kept = { headId: "", messages: "" }; // as it was last read or saved
  private thread?: ThreadRuntime;

  constructor(private readonly id: string) {
    this.adapter = modelAdapter(
      () => this.settings,
      () => useApp.getState().model,
    );
    this.history = {
      load: () => this.load(),
      append: async () => undefined, // everything is saved together
    };
  }

  private async load(): Promise<ExportedMessageRepository> {
    const body = await library.body(this.id);
    if (!body) return { messages: [] };
    this.settings = body.settings;
    this.kept = digest(body.messages);
    return body.messages;
  }

  /** Keep what changes in `thread`, until the function that is given back is called. */
  follow(thread: ThreadRuntime): () => void {
    this.thread = thread;
    let timer: ReturnType<typeof setTimeout> | undefined;
    const write = () => {
      clearTimeout(timer);
      timer = undefined;
      this.write();
    };
    const changed = () => {
      const { isRunning, isLoading } = thread.getState();
      setRunning(this.id, isRunning);
      if (!isLoading) timer ??= setTimeout(write, SAVE_AFTER);
    };
    const stop = thread.subscribe(changed);
    window.addEventListener("pagehide", write);
    return () => {
      stop();
      write();
      setRunning(this.id, false);
      window.removeEventListener("pagehide", write);
    };
  }

  change(settings: ChatSettings): void {
    this.settings = settings;
    const messages = this.thread?.export();
    if (messages?.messages.length) void this.keep({ settings, messages }, true);
  }

  private write(): void {
    const messages = this.thread!.export();
    const now = digest(messages);
    const same = now.messages === this.kept.messages;
    if (!messages.messages.length || (same && now.headId === this.kept.headId)) return;
    this.kept = now;
    void this.keep({ settings: this.settings, messages }, same);
  }

  /** `quietly`: without making it the newest. */
  private async keep(body: Body, quietly: boolean): Promise<void> {
    const { heads, model } = useApp.getState();
    const known = heads.find((head) => head.id === this.id);
    const now = Date.now();
    const title = known?.title ?? titleOf(library.textOf(body.messages.messages[0]!.message));
    const updated = quietly && known ? known.updated : now;
    await save({ id: this.id, title, model, created: known?.created ?? now, updated }, body);
  }
}

/** The beginning of the first question. */
function titleOf(text: string): string {
  const line = text.trim().split("\n")[0] ?? "";
  return line.length > 60 ? `${line.slice(0, 57).trimEnd()}…` : line || "Chat";
}
