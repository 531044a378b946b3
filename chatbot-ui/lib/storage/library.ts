import type { ExportedMessageRepository } from "@assistant-ui/react";
import type { Body, ChatSettings, Head } from "./types";
import { NEW_SETTINGS } from "./types";
import * as vault from "./database";

/** The conversations of this device. Without a vault they live as long as the page. */

const memory = new Map<string, unknown>();
const HEAD = "head/";
const BODY = "body/";
const DEFAULTS = "defaults";
const FORMAT = "swarm-chat";

async function keep(name: string, value: unknown) {
  if (vault.canKeep()) await vault.keep(name, value);
  else memory.set(name, structuredClone(value));
}

async function recall<T>(name: string): Promise<T | undefined> {
  return vault.canKeep() ? vault.recall<T>(name) : (memory.get(name) as T | undefined);
}

export const newId = () => Array.from(crypto.getRandomValues(new Uint8Array(12)), (byte) => byte.toString(16).padStart(2, "0")).join("");

/** The newest first. */
export async function heads(): Promise<Head[]> {
  const names = vault.canKeep() ? await vault.names(HEAD) : [...memory.keys()].filter((name) => name.startsWith(HEAD));
  const found = await Promise.all(names.map((name) => recall<Head>(name)));
  return found.filter((head) => head !== undefined).sort((one, other) => other.updated - one.updated);
}

export async function body(id: string): Promise<Body | undefined> {
  const found = await recall<Body>(BODY + id);
  return found && { ...found, messages: revived(found.messages) };
}

export const saveHead = (head: Head) => keep(HEAD + head.id, head);

export const saveBody = (id: string, content: Body) => keep(BODY + id, content);

export async function remove(id: string): Promise<void> {
  if (vault.canKeep()) await vault.forget(HEAD + id, BODY + id);
  else [HEAD + id, BODY + id].forEach((name) => memory.delete(name));
}

export const defaults = async () => (await recall<ChatSettings>(DEFAULTS)) ?? NEW_SETTINGS;

export const saveDefaults = (settings: ChatSettings) => keep(DEFAULTS, settings);

/** Those whose messages contain the words. */
export async function containing(words: string, among: Head[]): Promise<Set<string>> {
  const wanted = words.toLowerCase();
  const found = await Promise.all(
    among.map(async ({ id }) => {
      const content = await body(id);
      return content?.messages.messages.some(({ message }) => textOf(message).toLowerCase().includes(wanted)) ? id : "";
    }),
  );
  return new Set(found.filter(Boolean));
}

export const textOf = (message: { content: readonly { type: string; text?: string }[] }) =>
  message.content.map((part) => (part.type === "text" ? (part.text ?? "") : "")).join("");

/** What JSON makes of messages, as messages again. An answer that was being made when it was saved was cut off. */
function revived(saved: ExportedMessageRepository): ExportedMessageRepository {
  return {
    ...saved,
    messages: saved.messages.map((item) => {
      const message = { ...item.message, createdAt: new Date(item.message.createdAt) };
      if (message.role === "assistant" && message.status.type === "running") {
        return { ...item, message: { ...message, status: { type: "incomplete", reason: "cancelled" } } };
      }
      return { ...item, message };
    }),
  };
}

/** Conversations as a JSON text that `imported` reads; not encrypted. */
export async function exported(which: Head[]): Promise<string> {
  const conversations = await Promise.all(which.map(async (head) => ({ ...head, ...(await body(head.id)) })));
  return JSON.stringify({ format: FORMAT, version: 1, conversations }, null, 2);
}

/** Adds the conversations of such a text, under new ids. Throws an error in words for people. */
export async function imported(text: string): Promise<number> {
  let file: { format?: unknown; version?: unknown; conversations?: unknown };
  try {
    file = JSON.parse(text);
  } catch {
    throw new Error("This file is not JSON.");
  }
  if (file?.format !== FORMAT || file.version !== 1 || !Array.isArray(file.conversations)) {
    throw new Error("This file holds no conversations of this page.");
  }
  const read = file.conversations.map((each) => readConversation(each));
  for (const { head, content } of read) {
    await saveBody(head.id, content);
    await saveHead(head);
  }
  return read.length;
}

function readConversation(raw: Partial<Head & Body>): { head: Head; content: Body } {
  const items = raw?.messages?.messages;
  if (!Array.isArray(items)) throw new Error("A conversation in this file has no messages.");
  const known = new Set<string>();
  for (const item of items) {
    const { message, parentId } = item ?? {};
    const fine =
      typeof message?.id === "string" &&
      ["user", "assistant"].includes(message.role) &&
      Array.isArray(message.content) &&
      message.content.every((part) => part?.type === "text" && typeof part.text === "string") &&
      (parentId === null || known.has(parentId));
    if (!fine) throw new Error("A message in this file cannot be read.");
    known.add(message.id);
  }
  const now = Date.now();
  const number = (value: unknown) => (typeof value === "number" ? value : now);
  const head: Head = {
    id: newId(),
    title: String(raw.title ?? "Imported"),
    model: String(raw.model ?? ""),
    created: number(raw.created),
    updated: number(raw.updated),
  };
  return { head, content: { settings: raw.settings ?? NEW_SETTINGS, messages: raw.messages! } };
}
