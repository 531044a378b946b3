import { openDB, type DBSchema, type IDBPDatabase } from "idb";

/**
 * What the page keeps on this device: every record encrypted with AES-GCM under a key that the browser holds and that
 * no script can read out (non-extractable). Where a browser has no WebCrypto (a page over plain HTTP from another
 * machine) nothing is kept.
 */

interface Sealed {
  iv: Uint8Array<ArrayBuffer>;
  data: ArrayBuffer;
}

interface Schema extends DBSchema {
  keys: { key: string; value: CryptoKey };
  records: { key: string; value: Sealed };
}

let opened: Promise<{ db: IDBPDatabase<Schema>; key: CryptoKey }> | undefined;

let broken = false;

/** Whether anything can be kept here. */
export const canKeep = () => !broken && typeof indexedDB !== "undefined" && !!globalThis.crypto?.subtle;

/** Finds out, once: some browsers have a database and let nobody use it. */
export async function prepare(): Promise<void> {
  if (canKeep()) await open().catch(() => (broken = true));
}

function open() {
  opened ??= (async () => {
    const db = await openDB<Schema>("swarm-chat", 1, {
      upgrade(db) {
        db.createObjectStore("keys");
        db.createObjectStore("records");
      },
    });
    let key = await db.get("keys", "history");
    if (!key) {
      const made = await crypto.subtle.generateKey({ name: "AES-GCM", length: 256 }, false, ["encrypt", "decrypt"]);
      // Of two tabs that open for the first time together, the later one uses the key of the earlier.
      const turn = db.transaction("keys", "readwrite");
      key = await turn.store.get("history");
      if (!key) await turn.store.put((key = made), "history");
      await turn.done;
    }
    return { db, key };
  })();
  return opened;
}

/** A record's name is bound to its content, so that no record can be passed off as another. */
const named = (name: string) => new TextEncoder().encode(name);

export async function keep(name: string, value: unknown): Promise<void> {
  const { db, key } = await open();
  const iv = crypto.getRandomValues(new Uint8Array(12));
  const plain = new TextEncoder().encode(JSON.stringify(value));
  const data = await crypto.subtle.encrypt({ name: "AES-GCM", iv, additionalData: named(name) }, key, plain);
  await db.put("records", { iv, data }, name);
}

/** The record, or undefined where there is none or it cannot be read. */
export async function recall<T>(name: string): Promise<T | undefined> {
  const { db, key } = await open();
  const sealed = await db.get("records", name);
  if (!sealed) return undefined;
  try {
    const algorithm = { name: "AES-GCM", iv: sealed.iv, additionalData: named(name) };
    const plain = await crypto.subtle.decrypt(algorithm, key, sealed.data);
    return JSON.parse(new TextDecoder().decode(plain));
  } catch {
    return undefined;
  }
}

export async function names(prefix: string): Promise<string[]> {
  const { db } = await open();
  return db.getAllKeys("records", IDBKeyRange.bound(prefix, prefix + "\uffff"));
}

export async function forget(...records: string[]): Promise<void> {
  const { db } = await open();
  const turn = db.transaction("records", "readwrite");
  await Promise.all([...records.map((name) => turn.store.delete(name)), turn.done]);
}
