import Link from "next/link";

export default function NotFound() {
  return (
    <main className="alone">
      <h1>There is no such page</h1>
      <p>
        The chat is <Link href="/">here</Link>.
      </p>
    </main>
  );
}
