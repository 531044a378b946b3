"use client";

import { useCallback, useState } from "react";
import { makeKey, readMembers, SCOPES, useRead, type Account, type Scope } from "@/lib/state/accounts";
import { useApp } from "@/lib/state/app";
import { Command } from "@/components/ui/Command";
import { Dialog } from "@/components/ui/Dialog";

const DAY = 86400;
const LIVES = [
  [0, "Never"],
  [7 * DAY, "In a week"],
  [30 * DAY, "In 30 days"],
  [90 * DAY, "In 90 days"],
  [365 * DAY, "In a year"],
] as const;
const SCOPE_WORDS: Record<Scope, string> = {
  inference: "ask models",
  console: "see the swarm and the usage",
  admin: "manage keys",
};

/** Makes a key, and shows it this once. */
export function MakeKey({ account, close }: { account: Account; close: () => void }) {
  const models = useApp((state) => state.models);
  const owner = account.person?.role === "owner";
  const { value: members } = useRead(useCallback(async () => (owner ? readMembers() : []), [owner]));
  const [scopes, setScopes] = useState<Scope[]>(["inference", "console"]);
  const [allowed, setAllowed] = useState<string[]>([]);
  const [made, setMade] = useState("");
  const [problem, setProblem] = useState("");

  const submit = async (form: FormData) => {
    const text = (name: string) => String(form.get(name) ?? "").trim();
    const number = (name: string) => (text(name) ? Number(text(name)) : undefined);
    setProblem("");
    try {
      setMade(
        await makeKey({
          name: text("name"),
          person: text("person") || undefined,
          scopes,
          models: allowed.length ? allowed : undefined,
          requests_per_minute: number("requests"),
          tokens_per_day: number("tokens"),
          sessions: number("sessions"),
          expires: number("expires") || undefined,
        }),
      );
    } catch (error) {
      setProblem(error instanceof Error ? error.message : String(error));
    }
  };
  if (made) {
    return (
      <Dialog title="The new key" close={close} wide>
        <p>Copy it now: it is shown this once. Only a digest of it is kept.</p>
        <Command name="API key" text={made} />
        <div className="actions">
          <button className="main" onClick={close}>
            Done
          </button>
        </div>
      </Dialog>
    );
  }
  return (
    <Dialog title="Make a key" close={close} wide>
      <form
        onSubmit={(event) => {
          event.preventDefault();
          void submit(new FormData(event.currentTarget));
        }}
      >
        <div className="grid">
          <label className="field">
            Name
            <input name="name" required maxLength={200} autoComplete="off" placeholder="What it is for" />
          </label>
          {owner && (
            <label className="field">
              Member
              <select name="person" defaultValue={account.person?.name} key={members?.length}>
                {(members?.length ? members : [account.person?.name]).map((name) => (
                  <option key={name}>{name}</option>
                ))}
              </select>
            </label>
          )}
          <label className="field">
            Expires
            <select name="expires">
              {LIVES.map(([seconds, words]) => (
                <option key={seconds} value={seconds || ""}>
                  {words}
                </option>
              ))}
            </select>
          </label>
        </div>
        <Ticks
          legend="It may"
          options={SCOPES.filter((scope) => account.scopes?.includes(scope)).map((scope) => [scope, SCOPE_WORDS[scope]])}
          chosen={scopes}
          choose={(found) => setScopes(found as Scope[])}
        />
        {models.length > 0 && (
          <Ticks
            legend="Only these models (none: all)"
            options={models.map((model) => [model.id, model.id])}
            chosen={allowed}
            choose={setAllowed}
          />
        )}
        <div className="grid">
          <Most name="requests" words="Requests a minute" max={6000} />
          <Most name="tokens" words="Tokens a day" />
          <Most name="sessions" words="Sessions at once" max={10000} />
        </div>
        {problem && (
          <p className="problem" role="alert">
            {problem}
          </p>
        )}
        <div className="actions">
          <button className="main" type="submit" disabled={!scopes.length}>
            Make key
          </button>
        </div>
      </form>
    </Dialog>
  );
}

function Most({ name, words, max }: { name: string; words: string; max?: number }) {
  return (
    <label className="field">
      {words}
      <input name={name} type="number" min={1} max={max} placeholder="Any number" />
    </label>
  );
}

function Ticks(props: {
  legend: string;
  options: (readonly [string, string])[];
  chosen: string[];
  choose: (chosen: string[]) => void;
}) {
  return (
    <fieldset className="choice">
      <legend>{props.legend}</legend>
      {props.options.map(([value, words]) => (
        <label key={value}>
          <input
            type="checkbox"
            checked={props.chosen.includes(value)}
            onChange={(event) =>
              props.choose(
                event.target.checked ? [...props.chosen, value] : props.chosen.filter((other) => other !== value),
              )
            }
          />{" "}
          {words}
        </label>
      ))}
    </fieldset>
  );
}
