"use client";

import { Plus } from "lucide-react";
import { useState } from "react";
import { readAccount, readKeys, revokeKey, useRead, type Account as Known, type Key } from "@/lib/state/accounts";
import { count } from "@/lib/ui/format";
import { Dialog } from "@/components/ui/Dialog";
import { Account } from "./Account";
import { MakeKey } from "./MakeKey";
import "@/components/console/console.css";
import "./accounts.css";

/** The API keys of whoever looks at the page; an owner sees everybody's. */
export function Keys() {
  const { value: account, problem } = useRead(readAccount);
  const [making, setMaking] = useState(false);
  const [round, setRound] = useState(0);
  if (!account) return <p className="quiet centred">{problem || "Loading."}</p>;
  const may = account.scopes?.includes("admin") ?? false;
  const make = may && (
    <button className="main" onClick={() => setMaking(true)}>
      <Plus aria-hidden /> Make a key
    </button>
  );
  return (
    <Account account={account} title="API keys" about="Each lets a program use the gateway." tools={make}>
      {may ? (
        <List key={round} owner={account.person?.role === "owner"} />
      ) : (
        <section className="empty">
          <h3>This key may not see keys</h3>
          <p>
            It lacks the scope <code>admin</code>. Sign in, use a key that has it, or run <code>swarm key list</code> on the
            gateway&rsquo;s machine.
          </p>
        </section>
      )}
      {making && <MakeKey account={account as Known} close={() => (setMaking(false), setRound(round + 1))} />}
    </Account>
  );
}

function List({ owner }: { owner: boolean }) {
  const { value: keys, problem, again } = useRead(readKeys);
  const [leaving, setLeaving] = useState<Key>();
  const [failed, setFailed] = useState("");
  const revoke = async (key: Key) => {
    setLeaving(undefined);
    try {
      await revokeKey(key.id);
      setFailed("");
    } catch (error) {
      setFailed(error instanceof Error ? error.message : String(error));
    }
    again();
  };
  if (!keys) return <p className={problem ? "problem" : "quiet"}>{problem || "Loading."}</p>;
  if (!keys.length) return <p className="quiet">There are no keys yet.</p>;
  return (
    <>
      {failed && (
        <p className="problem" role="alert">
          {failed}
        </p>
      )}
      <div className="sheet" tabIndex={0} role="group" aria-label="API keys">
        <table>
          <thead>
            <tr>
              <th scope="col">Name</th>
              {owner && <th scope="col">Member</th>}
              <th scope="col">State</th>
              <th scope="col">May</th>
              <th scope="col">Last used</th>
              <th scope="col">Expires</th>
              <th scope="col">
                <span className="visually-hidden">Revoke</span>
              </th>
            </tr>
          </thead>
          <tbody>
            {keys.map((key) => (
              <tr key={key.id}>
                <th scope="row">
                  {key.name} <code>{key.id}</code>
                </th>
                {owner && <td>{key.person}</td>}
                <td className={`state ${key.state}`}>{key.state}</td>
                <td>{rights(key)}</td>
                <td>{date(key.last_used, "never")}</td>
                <td>{date(key.expires, "never")}</td>
                <td>
                  {key.state !== "revoked" && (
                    <button className="danger" aria-label={`Revoke ${key.name}`} onClick={() => setLeaving(key)}>
                      Revoke
                    </button>
                  )}
                </td>
              </tr>
            ))}
          </tbody>
        </table>
      </div>
      {leaving && (
        <Dialog title="Revoke this key?" close={() => setLeaving(undefined)}>
          <p>Programs that use “{leaving.name}” are refused from now on. This cannot be taken back.</p>
          <div className="actions">
            <button onClick={() => setLeaving(undefined)}>Keep</button>
            <button className="danger" onClick={() => void revoke(leaving)}>
              Revoke
            </button>
          </div>
        </Dialog>
      )}
    </>
  );
}

function rights(key: Key): string {
  return [
    key.scopes.join(", "),
    key.models && `only ${key.models.join(", ")}`,
    key.requests_per_minute && `${count(key.requests_per_minute, "request")} a minute`,
    key.tokens_per_day && `${key.tokens_per_day.toLocaleString()} tokens a day`,
    key.sessions && `${count(key.sessions, "session")} at once`,
  ]
    .filter(Boolean)
    .join("; ");
}

const date = (seconds: number | null, none: string) =>
  seconds === null ? none : new Date(seconds * 1000).toLocaleDateString([], { day: "numeric", month: "short", year: "numeric" });
