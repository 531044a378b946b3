"use client";

import { useEffect, useState } from "react";
import { readAccount } from "@/lib/state/accounts";
import { apiKey } from "@/lib/api/gateway";
import { useModal } from "@/lib/ui/modal";
import { refreshModels, useApp } from "@/lib/state/app";

/** Asks for the gateway's API key. */
export function Unlock() {
  const dialog = useModal();
  const [key, setKey] = useState("");
  const wrong = typeof window !== "undefined" && !!apiKey.get();
  const [signIn, setSignIn] = useState("");
  useEffect(() => {
    readAccount().then(
      (account) => setSignIn(account.sign_in ?? ""),
      () => setSignIn(""),
    );
  }, []);
  const use = () => {
    apiKey.set(key.trim());
    useApp.setState({ locked: false });
    void refreshModels();
  };
  return (
    <dialog ref={dialog} className="card" aria-labelledby="unlock-title" onCancel={(event) => event.preventDefault()}>
      <form
        onSubmit={(event) => {
          event.preventDefault();
          use();
        }}
      >
        <h2 id="unlock-title">This gateway asks for an API key</h2>
        <p className="quiet">
          {wrong ? "The key that was given is not the right one. " : ""}It is kept in this tab only.
        </p>
        <label className="field">
          API key
          <input type="password" autoComplete="off" required value={key} onChange={(event) => setKey(event.target.value)} />
        </label>
        <div className="actions">
          {signIn && (
            // A key that was given before would count instead of whoever signs in.
            <a className="button" href={signIn} onClick={() => apiKey.set("")}>
              Sign in instead
            </a>
          )}
          <button className="main" type="submit">
            Use key
          </button>
        </div>
      </form>
    </dialog>
  );
}
