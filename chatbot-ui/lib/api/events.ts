import { createParser } from "eventsource-parser";

/** What a stream of server-sent events says: an event, or a comment (a line that begins with a colon). */
export type StreamItem =
  | { kind: "event"; name: string; data: string }
  | { kind: "comment"; text: string };

export const BROKE = "The connection to the gateway broke.";

/** The items of a response, in order, until it ends. Leaving early closes the connection. */
export async function* items(body: ReadableStream<Uint8Array>): AsyncGenerator<StreamItem> {
  const waiting: StreamItem[] = [];
  const parser = createParser({
    onEvent: (event) => waiting.push({ kind: "event", name: event.event ?? "message", data: event.data }),
    onComment: (text) => waiting.push({ kind: "comment", text: text.trim() }),
  });
  const reader = body.getReader();
  const decoder = new TextDecoder();
  try {
    for (;;) {
      const { value, done } = await reader.read().catch((error: unknown) => {
        throw error instanceof DOMException && error.name === "AbortError" ? error : new Error(BROKE);
      });
      if (done) return;
      parser.feed(decoder.decode(value, { stream: true }));
      yield* waiting.splice(0);
    }
  } finally {
    reader.cancel().catch(() => undefined);
  }
}
