import { Shell } from "@/components/Shell";

export default function Page() {
  return <Shell />;
}
