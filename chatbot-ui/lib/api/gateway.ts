import { BROKE, items } from "./events";

/** A model as `/v1/models` lists it; only a complete one can be asked. */
export interface Model {
  id: string;
  complete: boolean;
  context_length?: number;
}

/** An answer of the gateway that is none, in its own words. */
export class GatewayError extends Error {
  constructor(
    readonly status: number,
    message: string,
  ) {
    super(message);
  }
}

export interface ChatMessage {
  role: "system" | "user" | "assistant";
  content: string;
}

/** Unset fields are the gateway's to choose. */
export interface Sampling {
  temperature?: number;
  top_p?: number;
  top_k?: number;
  max_tokens?: number;
  seed?: number;
  repetition_penalty?: number;
}

/** `id` is the answer's; `at`: when it came, as `performance.now()` says it. */
export type ChatItem =
  | { kind: "text"; id: string; text: string; at: number }
  | { kind: "note"; text: string }
  | { kind: "finish"; id: string; reason: string }
  | { kind: "usage"; prompt: number; completion: number };

const KEY = "key";
const STILL_WORKING = "still working"; // what the gateway says only to keep a connection open

/** The API key stays in this tab; another tab, or a restart of the browser, asks for it again. */
export const apiKey = {
  get: () => sessionStorage.getItem(KEY) ?? "",
  set: (key: string) => sessionStorage.setItem(KEY, key),
};

export async function ask(path: string, init: RequestInit = {}): Promise<Response> {
  const headers = new Headers(init.headers);
  if (apiKey.get()) headers.set("Authorization", `Bearer ${apiKey.get()}`);
  if (init.body) headers.set("Content-Type", "application/json");
  let response: Response;
  try {
    response = await fetch(path, { ...init, headers });
  } catch (error) {
    if (error instanceof DOMException && error.name === "AbortError") throw error;
    throw new GatewayError(0, "The gateway cannot be reached. Is it still running?");
  }
  if (!response.ok) throw new GatewayError(response.status, await explained(response));
  return response;
}

async function explained(response: Response): Promise<string> {
  try {
    return (await response.json()).error.message;
  } catch {
    return `The gateway answered with status ${response.status}.`;
  }
}

export async function listModels(): Promise<Model[]> {
  return (await (await ask("/v1/models")).json()).data;
}

/** The answer to a conversation, piece by piece, and what happens on the way. */
export async function* chat(
  model: string,
  messages: ChatMessage[],
  sampling: Sampling,
  signal: AbortSignal,
): AsyncGenerator<ChatItem> {
  const body = { model, messages, ...sampling, stream: true, stream_options: { include_usage: true } };
  const response = await ask("/v1/chat/completions", { method: "POST", body: JSON.stringify(body), signal });
  let finished = false;
  for await (const item of items(response.body!)) {
    if (item.kind === "comment") {
      if (item.text !== STILL_WORKING) yield { kind: "note", text: item.text };
      continue;
    }
    if (item.data === "[DONE]") break;
    const chunk = JSON.parse(item.data);
    if (chunk.error) throw new GatewayError(500, chunk.error.message);
    const choice = chunk.choices?.[0];
    if (choice?.delta?.content) {
      yield { kind: "text", id: chunk.id, text: choice.delta.content, at: performance.now() };
    }
    if (choice?.finish_reason) {
      finished = true;
      yield { kind: "finish", id: chunk.id, reason: choice.finish_reason };
    }
    if (chunk.usage) {
      yield { kind: "usage", prompt: chunk.usage.prompt_tokens, completion: chunk.usage.completion_tokens };
    }
  }
  if (!finished) throw new GatewayError(0, BROKE);
}
