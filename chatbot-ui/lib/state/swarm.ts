import { useEffect, useState } from "react";
import { ask, GatewayError } from "@/lib/api/gateway";
import { BROKE, items } from "@/lib/api/events";
import { useApp } from "./app";

/** The swarm as the gateway tells it. Times in seconds, sizes in bytes. */
export interface Server {
  key: string;
  /** What logs and `swarm peers` call it. */
  id: string;
  name: string;
  addresses: string[];
  model: string;
  blocks: number;
  start: number;
  end: number;
  state: "joining" | "ready" | "draining";
  backend: string;
  version: string;
  device: string;
  dtype: string;
  quantize: string;
  throughput: number;
  kv_tokens: number;
  kv_free: number;
  sessions: number;
  memory: number;
  memory_used: number;
  movable: boolean;
  round_trip: number | null;
  relayed: boolean;
}

export interface SwarmModel {
  name: string;
  blocks: number;
  context_length: number;
  complete: boolean;
  missing: [number, number][];
  replicas: number[];
  servers: Server[];
  fetchable: boolean;
}

export interface Place {
  key: string;
  name: string;
  addresses: string[];
}

export interface Swarm {
  directories: Place[];
  routers: Place[];
  models: SwarmModel[];
  can_invite: boolean;
  local_only: boolean;
}

export interface SwarmEvent {
  number: number;
  at: number;
  kind: string;
  text: string;
  mood: "good" | "plain" | "bad";
  model: string;
  server: string;
}

/** A server that is gone, for as long as its place is still shown. */
export interface Lost {
  server: Server;
  at: number;
}

export interface Watched {
  swarm?: Swarm;
  happenings: SwarmEvent[];
  lost: Lost[];
  connected: boolean;
  problem: string;
}

const REMEMBERED = 200;
export const SHOWN_LOST = 45_000; // ms for which the place of a lost server is shown

/** The swarm and what happens in it, while it is looked at. */
export function useSwarm(): Watched {
  const [watched, setWatched] = useState<Watched>({ happenings: [], lost: [], connected: false, problem: "" });
  const locked = useApp((state) => state.locked);
  useEffect(() => {
    if (locked) return;
    const leaving = new AbortController();
    void follow(setWatched, leaving.signal);
    return () => leaving.abort();
  }, [locked]);
  return watched;
}

type Update = (change: (old: Watched) => Watched) => void;

async function follow(update: Update, signal: AbortSignal): Promise<void> {
  while (!signal.aborted) {
    try {
      const response = await ask("/api/events", { signal });
      for await (const item of items(response.body!)) {
        if (signal.aborted) return;
        if (item.kind !== "event") continue;
        const content = JSON.parse(item.data);
        if (item.name === "past") update((old) => ({ ...old, happenings: content }));
        if (item.name === "happened") {
          update((old) => ({ ...old, happenings: [...old.happenings, content].slice(-REMEMBERED) }));
        }
        if (item.name === "swarm") update((old) => after(old, content));
      }
      update((old) => ({ ...old, connected: false, problem: BROKE }));
    } catch (error) {
      if (signal.aborted) return;
      if (error instanceof GatewayError && error.status === 401) useApp.setState({ locked: true });
      const problem = error instanceof Error ? error.message : String(error);
      update((old) => ({ ...old, connected: false, problem }));
    }
    await new Promise((resolve) => setTimeout(resolve, 2000));
  }
}

const servers = (swarm: Swarm | undefined) => swarm?.models.flatMap((model) => model.servers) ?? [];

function after(old: Watched, swarm: Swarm): Watched {
  const now = Date.now();
  const there = new Set(servers(swarm).map((server) => server.key));
  const gone = servers(old.swarm).filter((server) => !there.has(server.key));
  const lost = [...old.lost, ...gone.map((server) => ({ server, at: now }))].filter(
    ({ server, at }) => !there.has(server.key) && now - at < SHOWN_LOST,
  );
  return { ...old, swarm, lost, connected: true, problem: "" };
}

/** Bars in as few lanes as there can be, none over another; the first that fits, from the first block on. */
export function lanes<T extends { start: number; end: number }>(spans: readonly T[]): T[][] {
  const found: T[][] = [];
  for (const span of [...spans].sort((one, other) => one.start - other.start || other.end - one.end)) {
    const lane = found.find((each) => each.at(-1)!.end <= span.start);
    if (lane) lane.push(span);
    else found.push([span]);
  }
  return found;
}

export async function invite(expires: number, uses: number): Promise<string> {
  const response = await ask("/api/tokens", { method: "POST", body: JSON.stringify({ expires, uses }) });
  return (await response.json()).token;
}
