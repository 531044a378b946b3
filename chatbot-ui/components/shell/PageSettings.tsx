"use client";

import { useRef, useState } from "react";
import { download } from "@/lib/ui/clipboard";
import { exported } from "@/lib/storage/library";
import { bringIn, removeAll, useApp } from "@/lib/state/app";
import { setTheme, theme } from "@/lib/ui/theme";
import { canKeep } from "@/lib/storage/database";
import { count } from "@/lib/ui/format";
import { Dialog } from "@/components/ui/Dialog";

const THEMES = [
  ["", "As the system"],
  ["light", "Light"],
  ["dark", "Dark"],
] as const;

/** What concerns the whole page: how it looks, and the history that is kept on this device. */
export function PageSettings({ close }: { close: () => void }) {
  const heads = useApp((state) => state.heads);
  const [chosen, setChosen] = useState(theme);
  const [said, setSaid] = useState("");
  const [sure, setSure] = useState(false);
  const file = useRef<HTMLInputElement>(null);

  const choose = (name: string) => {
    setChosen(name);
    if (!setTheme(name)) setSaid("This browser keeps no settings; the theme holds until the page is closed.");
  };
  const bring = async (given: File | undefined) => {
    if (!given) return;
    try {
      setSaid(`${count(await bringIn(await given.text()), "chat")} added.`);
    } catch (error) {
      setSaid(error instanceof Error ? error.message : String(error));
    }
  };
  return (
    <Dialog title="Page settings" close={close}>
      <fieldset className="choice">
        <legend>Appearance</legend>
        {THEMES.map(([name, words]) => (
          <label key={name}>
            <input type="radio" name="theme" checked={chosen === name} onChange={() => choose(name)} /> {words}
          </label>
        ))}
      </fieldset>
      <section>
        <h3>Chats on this device</h3>
        <p className="quiet">
          {canKeep()
            ? "Chats are kept in this browser only, encrypted with a key that cannot be taken out of it. The gateway stores none of them. An exported file is not encrypted."
            : "This browser lets the page keep nothing, or the connection is not secure (HTTPS, or the gateway's own machine), so chats last until the page is closed."}
        </p>
        <div className="actions start">
          <button
            disabled={!heads.length}
            onClick={async () => download(`chats-${new Date().toISOString().slice(0, 10)}.json`, await exported(heads))}
          >
            Export all
          </button>
          <button onClick={() => file.current?.click()}>Import</button>
          <button className="danger" disabled={!heads.length} onClick={() => (sure ? removeAll().then(close) : setSure(true))}>
            {sure ? `Delete ${count(heads.length, "chat")} for good` : "Delete all"}
          </button>
          <input
            ref={file}
            hidden
            type="file"
            aria-label="File with chats"
            accept="application/json,.json"
            onChange={(event) => void bring(event.target.files?.[0])}
          />
        </div>
        <p role="status">{said}</p>
      </section>
      <section>
        <h3>Keys</h3>
        <dl className="keys">
          <div><dt><kbd>Enter</kbd></dt><dd>send</dd></div>
          <div><dt><kbd>Shift</kbd>+<kbd>Enter</kbd></dt><dd>begin a new line</dd></div>
          <div><dt><kbd>Esc</kbd></dt><dd>stop the answer</dd></div>
          <div><dt><kbd>Ctrl</kbd>+<kbd>K</kbd></dt><dd>search chats</dd></div>
          <div><dt><kbd>Ctrl</kbd>+<kbd>Shift</kbd>+<kbd>O</kbd></dt><dd>new chat</dd></div>
        </dl>
      </section>
      <p className="quiet">
        <a href="/licences.txt">Licences</a> of what this page is built with
      </p>
    </Dialog>
  );
}
