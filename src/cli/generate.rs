//! `tidegate completions` and `tidegate man`: made from the command line's own description, so that they can't differ
//! from it.

use super::{Cli, Exit, print};
use crate::daemon::Failure;
use clap::CommandFactory;
use clap_complete::Shell;
use std::path::Path;

/// The name of the program.
const NAME: &str = "tidegate";

/// Prints what the shell reads to complete our command lines.
pub(super) fn completions(shell: Shell) -> Result<(), Exit> {
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), NAME, &mut text);
    print(&text)
}

/// Writes a page for the program and one for each subcommand.
pub(super) fn man(folder: &Path) -> Result<(), Exit> {
    let write = std::fs::create_dir_all(folder).and_then(|()| clap_mangen::generate_to(Cli::command(), folder));
    write.map_err(|error| Failure::System(format!("can't write manual pages to {}: {error}", folder.display())).into())
}
