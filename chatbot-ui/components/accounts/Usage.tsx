"use client";

import { useCallback, useState } from "react";
import { readAccount, readUsage, useRead, type Usage as Used } from "@/lib/state/accounts";
import { Account } from "./Account";
import { Chart } from "./Chart";
import { grouped, type Amount } from "./grouped";
import "@/components/console/console.css";
import "./accounts.css";

const SPANS = [7, 30, 90] as const;
const WAYS = { key: "By key", server: "By server" } as const;
type Way = keyof typeof WAYS;

/** What was used, day by day: tokens by key, or the work of each server. */
export function Usage() {
  const { value: account, problem } = useRead(readAccount);
  const [days, setDays] = useState<number>(30);
  if (!account) return <p className="quiet centred">{problem || "Loading."}</p>;
  const choose = (
    <select aria-label="Days" value={days} onChange={(event) => setDays(Number(event.target.value))}>
      {SPANS.map((each) => (
        <option key={each} value={each}>
          {each} days
        </option>
      ))}
    </select>
  );
  return (
    <Account account={account} title="Usage" about="Days are those of UTC." tools={choose}>
      <Figures days={days} />
    </Account>
  );
}

function Figures({ days }: { days: number }) {
  const { value: used, problem } = useRead(useCallback(() => readUsage(days), [days]));
  const [way, setWay] = useState<Way>("key");
  if (!used) return <p className={problem ? "problem" : "quiet"}>{problem || "Loading."}</p>;
  const ways: Way[] = used.servers ? ["key", "server"] : ["key"];
  const amounts = way === "server" ? byServer(used) : byKey(used);
  const what = way === "server" ? "tokens × blocks" : "tokens";
  return (
    <>
      {ways.length > 1 && (
        <div className="tabs" role="group" aria-label="Usage by">
          {ways.map((each) => (
            <button key={each} aria-pressed={each === way} onClick={() => setWay(each)}>
              {WAYS[each]}
            </button>
          ))}
        </div>
      )}
      {amounts.length ? (
        <>
          <Chart found={grouped(amounts, used.since)} what={what} />
          {way === "server" ? <ServerTable used={used} /> : <KeyTable used={used} />}
        </>
      ) : (
        <p className="quiet">Nothing was used in these days.</p>
      )}
      {way === "server" && (
        <p className="quiet">
          Every block that a server computes for a token counts one. Where a server was lost in mid-answer, whoever took its
          place computed what it had, and both count.
        </p>
      )}
    </>
  );
}

const byKey = (used: Used): Amount[] =>
  used.keys.map((row) => ({
    day: row.day,
    id: `${row.person} ${row.key}`,
    name: row.person ? `${row.name} (${row.person})` : row.name,
    amount: row.prompt_tokens + row.generated_tokens,
  }));

const byServer = (used: Used): Amount[] =>
  (used.servers ?? []).map((row) => ({
    day: row.day,
    id: row.server,
    name: row.name || row.server.slice(0, 8),
    amount: row.work,
  }));

function KeyTable({ used }: { used: Used }) {
  const rows = summed(used.keys, (row) => [row.name, row.person, row.model], (row) => [
    row.requests,
    row.prompt_tokens,
    row.generated_tokens,
  ]);
  return <Table titles={["Key", "Member", "Model", "Requests", "Prompt tokens", "Answer tokens"]} rows={rows} />;
}

function ServerTable({ used }: { used: Used }) {
  const rows = summed(used.servers ?? [], (row) => [row.name || row.server.slice(0, 8), row.model], (row) => [row.work]);
  return <Table titles={["Server", "Model", "Tokens × blocks"]} rows={rows} />;
}

type Row = { names: string[]; counts: number[] };

/** The rows with the same names as one, the largest first. */
function summed<T>(rows: T[], names: (row: T) => string[], counts: (row: T) => number[]): Row[] {
  const found = new Map<string, Row>();
  for (const row of rows) {
    const key = JSON.stringify(names(row));
    const sum = found.get(key);
    if (sum) sum.counts = counts(row).map((each, place) => each + (sum.counts[place] ?? 0));
    else found.set(key, { names: names(row), counts: counts(row) });
  }
  const size = (row: Row) => row.counts.reduce((sum, count) => sum + count, 0);
  return [...found.values()].sort((one, other) => size(other) - size(one));
}

function Table({ titles, rows }: { titles: string[]; rows: Row[] }) {
  const counts = rows[0]?.counts.length ?? 0;
  return (
    <div className="sheet" tabIndex={0} role="group" aria-label="Usage in all">
      <table>
        <thead>
          <tr>
            {titles.map((title, place) => (
              <th key={title} scope="col" className={place < titles.length - counts ? undefined : "number"}>
                {title}
              </th>
            ))}
          </tr>
        </thead>
        <tbody>
          {rows.map(({ names, counts }) => (
            <tr key={names.join("\n")}>
              {names.map((name, place) => (place ? <td key={place}>{name}</td> : <th key={place} scope="row">{name}</th>))}
              {counts.map((count, place) => (
                <td key={place} className="number">
                  {count.toLocaleString()}
                </td>
              ))}
            </tr>
          ))}
        </tbody>
      </table>
    </div>
  );
}
