import type { ChatModelAdapter, ChatModelRunResult, ThreadMessage } from "@assistant-ui/react";
import { batches } from "./batches";
import { ask, chat, GatewayError, type ChatItem, type ChatMessage } from "@/lib/api/gateway";
import { textOf } from "@/lib/storage/library";
import { useApp } from "@/lib/state/app";
import type { ChatSettings, Hop, GenerationTrace } from "@/lib/storage/types";

const REDRAW = 40; // ms at least between two redraws

/** Makes answers through the gateway. `settings` and `model` are asked when an answer begins. */
export function modelAdapter(settings: () => ChatSettings, model: () => string): ChatModelAdapter {
  return {
    async *run({ messages, abortSignal }) {
      const making: GenerationTrace = { model: model(), tokens: 0, notes: [] };
      const { system, sampling } = settings();
      let text = "";
      let counted = 0;
      const result = (status?: ChatModelRunResult["status"]): ChatModelRunResult => ({
        content: text ? [{ type: "text", text }] : [],
        metadata: { custom: { making: { ...making, notes: [...making.notes] } } },
        ...(status && { status }),
      });
      const began = performance.now();
      let firstAt = 0;
      const take = (item: ChatItem) => {
        switch (item.kind) {
          case "text":
            making.id = item.id;
            text += item.text;
            making.tokens = ++counted;
            firstAt ||= item.at;
            making.first = (firstAt - began) / 1000;
            making.span = (item.at - firstAt) / 1000;
            break;
          case "note":
            making.notes.push(item.text);
            break;
          case "finish":
            making.id = item.id;
            making.finish = item.reason;
            break;
          case "usage":
            making.tokens = item.completion;
            break;
        }
      };
      try {
        if (!making.model) throw new GatewayError(0, "There is no model to ask yet.");
        const items = chat(making.model, conversation(system, messages), sampling, abortSignal);
        for await (const batch of batches(items, REDRAW)) {
          batch.forEach(take);
          yield result();
        }
        making.routes = making.id ? await routesOf(making.id) : undefined;
        yield result({ type: "complete", reason: making.finish === "length" ? "unknown" : "stop" });
      } catch (error) {
        if (abortSignal.aborted) return;
        if (error instanceof GatewayError && error.status === 401) useApp.setState({ locked: true });
        const words = error instanceof Error ? error.message : String(error);
        yield result({ type: "incomplete", reason: "error", error: words });
      }
    },
  };
}

function conversation(system: string, messages: readonly ThreadMessage[]): ChatMessage[] {
  const told: ChatMessage[] = system.trim() ? [{ role: "system", content: system.trim() }] : [];
  for (const message of messages) {
    const content = textOf(message);
    const last = told.at(-1);
    // An answer that failed before its first word is none; models want question and answer to take turns.
    if (content && last?.role === message.role) last.content += `\n\n${content}`;
    else if (content) told.push({ role: message.role, content });
  }
  return told;
}

/** Who computed an answer, in the order of the routes that it took; undefined where the gateway does not know it. */
export async function routesOf(id: string): Promise<Hop[][] | undefined> {
  try {
    return (await (await ask(`/api/answers/${encodeURIComponent(id)}`)).json()).routes;
  } catch {
    return undefined;
  }
}
