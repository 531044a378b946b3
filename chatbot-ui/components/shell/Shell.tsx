"use client";

import { Menu } from "lucide-react";
import { useEffect, useRef, useState, type ComponentType } from "react";
import { lazyModule } from "@/lib/ui/lazy";
import { useModal } from "@/lib/ui/modal";
import { fresh, refreshModels, start, useApp, VIEWS, type View } from "@/lib/state/app";
import { Conversation } from "@/components/chat/Conversation";
import { Sidebar } from "./Sidebar";
import { Unlock } from "./Unlock";

const Console = shown(lazyModule(() => import("@/components/console/Console").then(({ Console }) => ({ View: Console }))));
const Keys = shown(lazyModule(() => import("@/components/accounts/Keys").then(({ Keys }) => ({ View: Keys }))));
const Usage = shown(lazyModule(() => import("@/components/accounts/Usage").then(({ Usage }) => ({ View: Usage }))));

/** The whole page: conversations at the side, beside them the chat or the swarm. */
export function Shell() {
  const [ready, setReady] = useState(false);
  const { view, open, current, locked } = useApp();
  const [drawer, setDrawer] = useState(false);

  useEffect(() => {
    start().finally(() => setReady(true));
  }, []);
  useModels(ready);
  useAddress();
  useKeys();

  return (
    <div className="page">
      <a className="skip" href="#main">
        Skip to the content
      </a>
      <aside className="side wide" aria-label="Conversations">
        <Sidebar />
      </aside>
      {drawer && <Drawer close={() => setDrawer(false)} />}
      <main id="main" tabIndex={-1}>
        <h1 className="visually-hidden">Swarm chat</h1>
        <button className="icon narrow menu" aria-label="Conversations" onClick={() => setDrawer(true)}>
          <Menu aria-hidden />
        </button>
        {ready && view === "swarm" && <Console />}
        {ready && view === "keys" && <Keys />}
        {ready && view === "usage" && <Usage />}
        {ready &&
          open.map((id) => (
            <Conversation key={id} id={id} shown={view === "chat" && id === current} />
          ))}
      </main>
      {locked && <Unlock />}
    </div>
  );
}

/** A view of the page that is fetched when it is looked at first. */
function shown(usePart: () => { View: ComponentType } | undefined): ComponentType {
  return function Shown() {
    const part = usePart();
    return part ? <part.View /> : <p className="quiet centred">Loading.</p>;
  };
}

/** The side on a narrow screen, over the rest. */
function Drawer({ close }: { close: () => void }) {
  const dialog = useModal();
  return (
    <dialog
      className="drawer"
      ref={dialog}
      aria-label="Conversations"
      onClose={close}
      onClick={(event) => event.target === dialog.current && dialog.current?.close()}
    >
      <Sidebar done={() => dialog.current?.close()} />
    </dialog>
  );
}

/** Looks for models for as long as the page is open, often while there is none. */
function useModels(ready: boolean) {
  const locked = useApp((state) => state.locked);
  useEffect(() => {
    if (!ready || locked) return;
    let timer: ReturnType<typeof setTimeout>;
    let over = false;
    const look = async () => {
      const pause = await refreshModels();
      if (!over) timer = setTimeout(look, pause * 1000);
    };
    void look();
    return () => {
      over = true;
      clearTimeout(timer);
    };
  }, [ready, locked]);
}

/** The view is part of the address, so that it can be linked to and the browser's buttons work. */
function useAddress() {
  const view = useApp((state) => state.view);
  useEffect(() => {
    const read = () => {
      const view = (location.hash.slice(1) || "chat") as View;
      if (VIEWS.includes(view)) useApp.setState({ view });
    };
    read();
    window.addEventListener("hashchange", read);
    return () => window.removeEventListener("hashchange", read);
  }, []);
  const first = useRef(true);
  useEffect(() => {
    if (first.current) {
      first.current = false;
      return;
    }
    const wanted = view === "chat" ? "#" : `#${view}`;
    if ((location.hash || "#") !== wanted) history.pushState(null, "", wanted);
  }, [view]);
}

function useKeys() {
  useEffect(() => {
    const onKey = (event: KeyboardEvent) => {
      if (!(event.ctrlKey || event.metaKey)) return;
      if (event.key.toLowerCase() === "k") {
        event.preventDefault();
        document.querySelector<HTMLInputElement>(".side.wide .search input")?.focus();
      } else if (event.shiftKey && event.key.toLowerCase() === "o") {
        event.preventDefault();
        fresh();
      }
    };
    window.addEventListener("keydown", onKey);
    return () => window.removeEventListener("keydown", onKey);
  }, []);
}
