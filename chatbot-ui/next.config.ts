import type { NextConfig } from "next";

/** Plain files for the gateway to serve: there is no server of ours behind them. */
const config: NextConfig = {
  output: "export",
  reactStrictMode: true,
  images: { unoptimized: true },
  poweredByHeader: false,
};

export default config;
