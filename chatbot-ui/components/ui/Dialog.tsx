"use client";

import { X } from "lucide-react";
import { useId, type ReactNode } from "react";
import { useModal } from "@/lib/ui/modal";

/** A modal dialog with a title. */
export function Dialog(props: { title: string; close: () => void; wide?: boolean; children: ReactNode }) {
  const dialog = useModal();
  const title = useId();
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
