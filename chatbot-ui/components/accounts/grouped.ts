/** Amounts by day and by whom, for the chart. */

export interface Amount {
  day: string;
  id: string;
  name: string;
  amount: number;
}

export interface Day {
  day: string;
  /** One for each of `series`, in its order. */
  amounts: number[];
  sum: number;
}

export interface Grouped {
  series: { id: string; name: string }[];
  days: Day[];
  most: number;
}

const SHOWN = 8; // as many as there are colours

/** Every day from `since` to today or the last amount; those who used least are one together where there are many. */
export function grouped(amounts: Amount[], since: string, today = new Date().toISOString().slice(0, 10)): Grouped {
  const sums = new Map<string, number>();
  const names = new Map<string, string>();
  for (const { id, name, amount } of amounts) {
    sums.set(id, (sums.get(id) ?? 0) + amount);
    names.set(id, name);
  }
  const ids = [...sums.keys()].sort((one, other) => sums.get(other)! - sums.get(one)!);
  const kept = ids.length > SHOWN ? ids.slice(0, SHOWN - 1) : ids;
  const series = kept.map((id) => ({ id, name: names.get(id)! }));
  if (kept.length < ids.length) series.push({ id: "", name: `${ids.length - kept.length} others` });
  const place = new Map(kept.map((id, index) => [id, index]));

  const last = amounts.reduce((latest, { day }) => (day > latest ? day : latest), today);
  const days: Day[] = [];
  for (let time = Date.parse(since); time <= Date.parse(last); time += 86_400_000) {
    days.push({ day: new Date(time).toISOString().slice(0, 10), amounts: series.map(() => 0), sum: 0 });
  }
  const byName = new Map(days.map((day) => [day.day, day]));
  for (const { day, id, amount } of amounts) {
    const found = byName.get(day);
    if (!found) continue;
    const index = place.get(id) ?? series.length - 1;
    found.amounts[index] = (found.amounts[index] ?? 0) + amount;
    found.sum += amount;
  }
  return { series, days, most: Math.max(1, ...days.map((day) => day.sum)) };
}
