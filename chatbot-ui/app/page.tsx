import { Shell } from "@/components/shell/Shell";

export default function Page() {
  return <Shell />;
}
