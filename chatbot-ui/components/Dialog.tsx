"use client";

import { X } from "lucide-react";
import { useEffect, useId, useRef, type ReactNode } from "react";

/** A modal dialog with a title; the browser keeps the focus inside, and gives it back afterwards. */
export function Dialog(props: { title: string; close: () => void; wide?: boolean; children: ReactNode }) {
  const dialog = useRef<HTMLDialogElement>(null);
  const title = useId();
  useEffect(() => {
    const shown = dialog.current;
    if (shown && !shown.open) shown.showModal();
  }, []);
  return (
    <dialog
      ref={dialog}
      className={props.wide ? "card wide-card" : "card"}
      aria-labelledby={title}
      onClose={props.close}
      onClick={(event) => event.target === dialog.current && dialog.current?.close()}
    >
      <div className="card-body">
        <header className="card-head">
          <h2 id={title}>{props.title}</h2>
          <button className="icon" aria-label="Close" onClick={() => dialog.current?.close()}>
            <X aria-hidden />
          </button>
        </header>
        {props.children}
      </div>
    </dialog>
  );
}
