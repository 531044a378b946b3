import type { ExportedMessageRepository } from "@assistant-ui/react";
import type { Sampling } from "@/lib/api/gateway";

/** How the answers of a conversation are made. */
export interface ChatSettings {
  system: string;
  sampling: Sampling;
}

/** What the list of conversations shows. Times in milliseconds since the epoch. */
export interface Head {
  id: string;
  title: string;
  model: string;
  created: number;
  updated: number;
}

/** The rest of a conversation: its messages with all their branches. */
export interface Body {
  settings: ChatSettings;
  messages: ExportedMessageRepository;
}

/** A part of a route: one server and the blocks that it computes. */
export interface Hop {
  key: string;
  name: string;
  start: number;
  end: number;
}

/** What is known of how an answer was made; kept with the message. Times in seconds. */
export interface GenerationTrace {
  id?: string;
  model: string;
  /** From the request to the first words. */
  first?: number;
  /** From the first words to the last. */
  span?: number;
  tokens: number;
  notes: string[];
  finish?: string;
  routes?: Hop[][];
}

export const NEW_SETTINGS: ChatSettings = { system: "", sampling: { temperature: 0.2, top_p: 0.9 } };
