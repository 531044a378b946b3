"use client";

import type { Grouped } from "./grouped";

/** A bar for each day, in parts. The table below it says the same in figures, so screen readers skip the bars. */
export function Chart({ found, what }: { found: Grouped; what: string }) {
  const { series, days, most } = found;
  const shown = days.length > 10 ? [0, Math.floor(days.length / 2), days.length - 1] : [0, days.length - 1];
  return (
    <figure className="map chart" aria-label={`${what} for each day, ${most.toLocaleString()} at most`}>
      <div className="bars" aria-hidden>
        {days.map(({ day, amounts, sum }) => (
          <div key={day} className="day" title={`${day}: ${sum.toLocaleString()} ${what}`}>
            {amounts.map((amount, place) =>
              amount ? (
                <i key={place} style={{ height: `${(100 * amount) / most}%`, background: `var(--server-${place})` }} />
              ) : null,
            )}
          </div>
        ))}
      </div>
      <div className="days quiet" aria-hidden>
        {shown.map((place) => (
          <span key={place}>{days[place]?.day}</span>
        ))}
      </div>
      <figcaption>
        <span className="quiet">
          {what}, {most.toLocaleString()} on the busiest day
        </span>
        <ul>
          {series.map(({ id, name }, place) => (
            <li key={id}>
              <i className="dot" style={{ background: `var(--server-${place})` }} /> {name}
            </li>
          ))}
        </ul>
      </figcaption>
    </figure>
  );
}
