"use client";

import { ChartColumn, Check, KeyRound, MessageSquare, Network, Pencil, Plus, Search, Settings2, Trash2, X } from "lucide-react";
import type { LucideIcon } from "lucide-react";
import { useDeferredValue, useEffect, useState } from "react";
import { containing } from "@/lib/storage/library";
import { fresh, remove, rename, show, useApp, type View } from "@/lib/state/app";
import type { Head } from "@/lib/storage/types";
import { when } from "@/lib/ui/format";
import { Dialog } from "@/components/ui/Dialog";
import { PageSettings } from "./PageSettings";

const PLACES: [View, string, LucideIcon][] = [
  ["chat", "Chat", MessageSquare],
  ["swarm", "Swarm", Network],
  ["keys", "API keys", KeyRound],
  ["usage", "Usage", ChartColumn],
];

/** The conversations of this device, and the way to the swarm. `done` is called when something was chosen. */
export function Sidebar({ done }: { done?: () => void }) {
  const { view } = useApp();
  const [words, setWords] = useState("");
  const [settings, setSettings] = useState(false);
  const heads = useFound(words);
  return (
    <div className="side-body">
      <div className="brand">
        <svg viewBox="0 0 32 32" aria-hidden>
          <rect x="3" y="6" width="15" height="5" rx="2.5" />
          <rect x="9" y="13.5" width="15" height="5" rx="2.5" opacity=".7" />
          <rect x="14" y="21" width="15" height="5" rx="2.5" />
        </svg>
        <b>Swarm chat</b>
        {done && (
          <button className="icon" aria-label="Close" onClick={done}>
            <X aria-hidden />
          </button>
        )}
      </div>
      <nav aria-label="Views">
        {PLACES.map(([place, words, Picture]) => (
          <button
            key={place}
            className="row"
            aria-current={view === place ? "page" : undefined}
            onClick={() => (useApp.setState({ view: place }), done?.())}
          >
            <Picture aria-hidden /> {words}
          </button>
        ))}
      </nav>
      <button className="row new" title="Ctrl+Shift+O" onClick={() => (fresh(), done?.())}>
        <Plus aria-hidden /> New chat
      </button>
      <div className="search">
        <Search aria-hidden />
        <input
          type="search"
          placeholder="Search chats"
          aria-label="Search chats"
          title="Ctrl+K"
          value={words}
          onChange={(event) => setWords(event.target.value)}
        />
      </div>
      <ul className="chats" aria-label={words ? "Chats that were found" : "Chats"}>
        {heads.map((head) => (
          <Entry key={head.id} head={head} done={done} />
        ))}
        {!heads.length && <li className="quiet none">{words ? "Nothing was found." : "Chats will be listed here."}</li>}
      </ul>
      <button className="row" onClick={() => setSettings(true)}>
        <Settings2 aria-hidden /> Page settings
      </button>
      {settings && <PageSettings close={() => setSettings(false)} />}
    </div>
  );
}

/** Those whose title or text contains the words. */
function useFound(words: string): Head[] {
  const heads = useApp((state) => state.heads);
  const wanted = useDeferredValue(words.trim().toLowerCase());
  const [inText, setInText] = useState<Set<string>>(new Set());
  useEffect(() => {
    if (!wanted) return;
    let over = false;
    containing(wanted, heads).then((found) => !over && setInText(found));
    return () => {
      over = true;
    };
  }, [wanted, heads]);
  return wanted ? heads.filter((head) => head.title.toLowerCase().includes(wanted) || inText.has(head.id)) : heads;
}

function Entry({ head, done }: { head: Head; done?: () => void }) {
  const { current, view, running } = useApp();
  const [naming, setNaming] = useState(false);
  const [leaving, setLeaving] = useState(false);
  if (naming) return <Naming head={head} close={() => setNaming(false)} />;
  return (
    <li className="chat">
      <button
        className="row"
        aria-current={view === "chat" && head.id === current ? "true" : undefined}
        onClick={() => (show(head.id), done?.())}
      >
        <span className="title">{head.title}</span>
        {running[head.id] ? <span className="pulse" role="img" aria-label="answering" /> : <time>{when(head.updated)}</time>}
      </button>
      <span className="tools">
        <button className="icon" aria-label={`Rename ${head.title}`} onClick={() => setNaming(true)}>
          <Pencil aria-hidden />
        </button>
        <button className="icon" aria-label={`Delete ${head.title}`} onClick={() => setLeaving(true)}>
          <Trash2 aria-hidden />
        </button>
      </span>
      {leaving && (
        <Dialog title="Delete this chat?" close={() => setLeaving(false)}>
          <p>“{head.title}” and all its messages will be gone for good.</p>
          <div className="actions">
            <button onClick={() => setLeaving(false)}>Keep</button>
            <button className="danger" onClick={() => remove(head.id)}>
              Delete
            </button>
          </div>
        </Dialog>
      )}
    </li>
  );
}

function Naming({ head, close }: { head: Head; close: () => void }) {
  const [title, setTitle] = useState(head.title);
  return (
    <li className="chat">
      <form
        className="naming"
        onSubmit={(event) => {
          event.preventDefault();
          void rename(head.id, title).then(close);
        }}
      >
        <input
          autoFocus
          aria-label="New name"
          value={title}
          maxLength={200}
          onChange={(event) => setTitle(event.target.value)}
          onKeyDown={(event) => event.key === "Escape" && close()}
          onFocus={(event) => event.target.select()}
        />
        <button className="icon" type="submit" aria-label="Save name">
          <Check aria-hidden />
        </button>
      </form>
    </li>
  );
}
