import { useCallback, useEffect, useState } from "react";
import { ask, GatewayError } from "@/lib/api/gateway";
import { useApp } from "./app";

/** Who uses this page, as the gateway tells it. */
export interface Account {
  accounts: boolean;
  sign_in: string | null;
  known: boolean;
  person?: { name: string; email: string | null; role: "owner" | "member" } | null;
  scopes?: Scope[];
  signed_in?: boolean;
}

export const SCOPES = ["inference", "console", "admin"] as const;
export type Scope = (typeof SCOPES)[number];

/** Dates in seconds since the epoch. */
export interface Key {
  id: string;
  name: string;
  person: string;
  state: "good" | "revoked" | "expired" | "removed";
  scopes: Scope[];
  models: string[] | null;
  requests_per_minute: number | null;
  tokens_per_day: number | null;
  sessions: number | null;
  created: number;
  expires: number | null;
  last_used: number | null;
}

/** `expires` in seconds from now. */
export interface NewKey {
  name: string;
  person?: string;
  scopes: Scope[];
  models?: string[];
  requests_per_minute?: number;
  tokens_per_day?: number;
  sessions?: number;
  expires?: number;
}

export interface KeyUse {
  day: string;
  key: string;
  name: string;
  person: string;
  model: string;
  requests: number;
  prompt_tokens: number;
  generated_tokens: number;
}

/** `work`: tokens times blocks. */
export interface ServerUse {
  day: string;
  server: string;
  name: string;
  model: string;
  work: number;
}

export interface Usage {
  since: string;
  keys: KeyUse[];
  servers: ServerUse[] | null;
}

export const readAccount = async (): Promise<Account> => (await ask("/api/account")).json();
export const readKeys = async (): Promise<Key[]> => (await (await ask("/api/keys")).json()).keys;
export const readUsage = async (days: number): Promise<Usage> => (await ask(`/api/usage?days=${days}`)).json();
export const readMembers = async (): Promise<string[]> =>
  (await (await ask("/api/members")).json()).members.map((each: { name: string }) => each.name);

/** The text of the new key, which is never to be had again. */
export async function makeKey(wanted: NewKey): Promise<string> {
  return (await (await ask("/api/keys", { method: "POST", body: JSON.stringify(wanted) })).json()).key;
}

export async function revokeKey(id: string): Promise<void> {
  await ask(`/api/keys/${encodeURIComponent(id)}`, { method: "DELETE" });
}

export async function signOut(): Promise<void> {
  await ask("/api/sign-out", { method: "POST" });
  location.reload();
}

export interface Read<T> {
  value?: T;
  problem: string;
  again: () => void;
}

/** What `read` gives, once it is there, and again whenever it changes or the page is unlocked. */
export function useRead<T>(read: () => Promise<T>): Read<T> {
  const locked = useApp((state) => state.locked);
  const [found, setFound] = useState<{ value?: T; problem: string }>({ problem: "" });
  const [round, setRound] = useState(0);
  useEffect(() => {
    if (locked) return;
    let over = false;
    read().then(
      (value) => !over && setFound({ value, problem: "" }),
      (error) => {
        if (over) return;
        if (error instanceof GatewayError && error.status === 401) useApp.setState({ locked: true });
        else setFound({ problem: error instanceof Error ? error.message : String(error) });
      },
    );
    return () => {
      over = true;
    };
  }, [read, locked, round]);
  return { ...found, again: useCallback(() => setRound((number) => number + 1), []) };
}
