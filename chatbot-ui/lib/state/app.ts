import { create } from "zustand";
import { GatewayError, listModels, type Model } from "@/lib/api/gateway";
import * as library from "@/lib/storage/library";
import { prepare } from "@/lib/storage/database";
import type { Body, ChatSettings, Head } from "@/lib/storage/types";
import { NEW_SETTINGS } from "@/lib/storage/types";

export const VIEWS = ["chat", "swarm", "keys", "usage"] as const;
export type View = (typeof VIEWS)[number];

interface State {
  /** What the gateway says of the models; `problem` while it cannot be asked, `locked` while it wants a key. */
  models: Model[];
  asked: boolean;
  problem: string;
  locked: boolean;

  view: View;
  heads: Head[];
  current: string;
  /** Conversations that are in memory, because they are shown or were; an answer goes on in the background. */
  open: string[];
  running: Record<string, boolean>;
  defaults: ChatSettings;
  /** The model for new conversations. */
  model: string;
}

const OPEN_AT_ONCE = 6;
const removed = new Set<string>();

export const useApp = create<State>(() => ({
  models: [],
  asked: false,
  problem: "",
  locked: false,
  view: "chat",
  heads: [],
  current: "",
  open: [],
  running: {},
  defaults: NEW_SETTINGS,
  model: "",
}));

const { getState: get, setState: set } = useApp;

/** Read what is kept on this device. */
export async function start(): Promise<void> {
  await prepare();
  const [heads, defaults] = await Promise.all([library.heads(), library.defaults()]);
  set({ heads, defaults });
  const wanted = sessionStorage.getItem("current");
  open(heads.some((head) => head.id === wanted) ? wanted! : library.newId());
}

/** Ask for the models; gives the seconds after which to ask again. */
export async function refreshModels(): Promise<number> {
  if (document.hidden || get().locked) return 3;
  try {
    const models = await listModels();
    const usable = models.filter((model) => model.complete);
    const { model } = get();
    const kept = usable.some((each) => each.id === model) ? model : (usable[0]?.id ?? "");
    set({ models, asked: true, problem: "", model: kept });
    return usable.length ? 10 : 2;
  } catch (error) {
    if (error instanceof GatewayError && error.status === 401) set({ locked: true });
    else set({ problem: error instanceof Error ? error.message : String(error) });
    return 3;
  }
}

export function show(id: string): void {
  open(id);
  set({ view: "chat" });
}

function open(id: string): void {
  sessionStorage.setItem("current", id);
  const { running } = get();
  const others = get().open.filter((other) => other !== id);
  const idle = others.filter((other) => !running[other]);
  const { heads, models } = get();
  const asked = heads.find((head) => head.id === id)?.model;
  if (models.some((model) => model.id === asked && model.complete)) set({ model: asked });
  const dropped = new Set(idle.slice(0, Math.max(0, idle.length - OPEN_AT_ONCE + 1)));
  set({ current: id, open: [...others.filter((other) => !dropped.has(other)), id] });
}

/** A new conversation; the one that is shown, where nothing has been said in it yet. */
export function fresh(): void {
  const { heads, current } = get();
  show(heads.some((head) => head.id === current) || removed.has(current) ? library.newId() : current);
}

export function setRunning(id: string, yes: boolean): void {
  if (!!get().running[id] !== yes) set({ running: { ...get().running, [id]: yes } });
}

/** Keep a conversation; of one that was removed meanwhile nothing comes back. */
export async function save(head: Head, body?: Body): Promise<void> {
  if (removed.has(head.id)) return;
  const heads = [head, ...get().heads.filter((other) => other.id !== head.id)];
  set({ heads: heads.sort((one, other) => other.updated - one.updated) });
  if (body) await library.saveBody(head.id, body);
  await library.saveHead(head);
}

export async function rename(id: string, title: string): Promise<void> {
  const head = get().heads.find((each) => each.id === id);
  if (head && title.trim()) await save({ ...head, title: title.trim() });
}

export async function remove(id: string): Promise<void> {
  removed.add(id);
  set({ heads: get().heads.filter((head) => head.id !== id), open: get().open.filter((other) => other !== id) });
  if (get().current === id) fresh();
  await library.remove(id);
}

export async function removeAll(): Promise<void> {
  const ids = get().heads.map((head) => head.id);
  ids.forEach((id) => removed.add(id));
  set({ heads: [], open: [] });
  fresh();
  await Promise.all(ids.map(library.remove));
}

export async function bringIn(text: string): Promise<number> {
  const number = await library.imported(text);
  set({ heads: await library.heads() });
  return number;
}

export async function saveDefaults(defaults: ChatSettings): Promise<void> {
  set({ defaults });
  await library.saveDefaults(defaults);
}
