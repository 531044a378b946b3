"use client";

import type { SwarmEvent } from "@/lib/state/swarm";

/** What happened, the newest first. */
export function Events({ happenings }: { happenings: SwarmEvent[] }) {
  return (
    <section className="events" aria-label="Events">
      <h3>Events</h3>
      <div className="log" role="log" tabIndex={0} aria-label="Events, the newest first">
        <ol>
          {[...happenings].reverse().map((each) => (
            <li key={each.number} data-mood={each.mood}>
              <time dateTime={new Date(each.at * 1000).toISOString()}>
                {new Date(each.at * 1000).toLocaleTimeString([], { hour: "2-digit", minute: "2-digit", second: "2-digit" })}
              </time>
              <span>{each.text}</span>
            </li>
          ))}
          {!happenings.length && <li className="quiet">Nothing has happened yet.</li>}
        </ol>
      </div>
    </section>
  );
}
