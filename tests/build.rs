//! Builds the eBPF object that the benchmark measures.

fn main() {
    allowlist_ebpf_build::main("allowlist-bench-ebpf", "tests/ebpf");
}
