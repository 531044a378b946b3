"use client";

import type { ReactNode } from "react";
import { signOut, type Account as Known } from "@/lib/state/accounts";
import { Command } from "@/components/ui/Command";

/** What stands above a page of the accounts, and in place of the page where it cannot be shown. */
export function Account(props: { account: Known; title: string; about: string; tools?: ReactNode; children: ReactNode }) {
  const { person, signed_in } = props.account;
  return (
    <div className="console">
      <header className="console-head">
        <div>
          <h2>{props.title}</h2>
          <p className="quiet">{props.about}</p>
          {person && (
            <p className="quiet who">
              {person.name}, {person.role}
              {signed_in && (
                <button className="plain-link" onClick={() => void signOut()}>
                  Sign out
                </button>
              )}
            </p>
          )}
        </div>
        {person && <div className="actions">{props.tools}</div>}
      </header>
      {!props.account.accounts ? <HowToBegin /> : person ? props.children : <NoPerson />}
    </div>
  );
}

function HowToBegin() {
  return (
    <section className="empty">
      <h3>This gateway has no accounts yet</h3>
      <p>
        Whoever can reach it may use it, and nothing is counted. Make the first key, on the machine of the gateway, then
        start the gateway again. From then on it asks for a key, here as well.
      </p>
      <Command name="Make a key" text="swarm key create NAME --owner" />
    </section>
  );
}

function NoPerson() {
  return (
    <section className="empty">
      <h3>This is the gateway&rsquo;s own key</h3>
      <p>It belongs to no member, so it has no keys and no usage of its own. Use the key of a member, or sign in.</p>
    </section>
  );
}
