//! Which shell runs commands and which one greets: zsh, else bash, else the account's, else sh.

use std::path::{Path, PathBuf};

use crate::accounts::Account;

const FALLBACK: &str = "/bin/sh";

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shells {
    command: PathBuf,
    login: PathBuf,
}

impl Shells {
    pub fn read(etc: &Path, account: &Account) -> Shells {
        let listed = std::fs::read_to_string(etc.join("shells")).unwrap_or_default();
        Shells::choose(&listed, account.shell.as_deref(), |path| path.exists())
    }

    fn choose(listed: &str, account: Option<&Path>, exists: impl Fn(&Path) -> bool) -> Shells {
        // An account closed to logins still runs commands: who calls has already been let in.
        let account =
            account.filter(|shell| !shell.ends_with("nologin") && !shell.ends_with("false") && exists(shell));
        let named = |name: &str| {
            let lines = listed.lines().map(str::trim).filter(|line| line.starts_with('/'));
            lines.map(Path::new).find(|shell| shell.ends_with(name) && exists(shell))
        };
        let command =
            named("zsh").or_else(|| named("bash")).or(account).unwrap_or(Path::new(FALLBACK)).to_owned();
        Shells { login: account.map_or_else(|| command.clone(), Path::to_owned), command }
    }

    /// Runs commands of the toolbox.
    pub fn command(&self) -> &Path {
        &self.command
    }

    /// The account's own, for terminals and SSH.
    pub fn login(&self) -> &Path {
        &self.login
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn choose(listed: &str, account: &str, existing: &[&str]) -> (String, String) {
        let exists = |path: &Path| existing.iter().any(|existing| Path::new(existing) == path);
        let shells = Shells::choose(listed, Some(Path::new(account)), exists);
        (shells.command.display().to_string(), shells.login.display().to_string())
    }

    #[test]
    fn zsh_then_bash_then_the_accounts_then_sh() {
        let listed = "# shells\n/bin/sh\n/bin/bash\n/usr/bin/zsh\n";

        assert_eq!(choose(listed, "/bin/sh", &["/bin/sh", "/bin/bash", "/usr/bin/zsh"]).0, "/usr/bin/zsh");
        assert_eq!(choose(listed, "/bin/sh", &["/bin/sh", "/bin/bash"]).0, "/bin/bash");
        assert_eq!(choose("", "/bin/fish", &["/bin/fish"]).0, "/bin/fish");
        assert_eq!(choose("", "/bin/fish", &[]).0, "/bin/sh");
    }

    #[test]
    fn the_login_shell_is_the_accounts_unless_it_refuses_logins() {
        let listed = "/bin/bash\n";

        assert_eq!(choose(listed, "/bin/sh", &["/bin/sh", "/bin/bash"]).1, "/bin/sh");
        assert_eq!(choose(listed, "/usr/sbin/nologin", &["/usr/sbin/nologin", "/bin/bash"]).1, "/bin/bash");
    }
}
