//! The `zdap` program; everything is in the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    zdap::main()
}
