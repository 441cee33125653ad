//! Who the sandbox's user is: `/etc/passwd` and `/etc/group` read by hand, because a static glibc has no NSS.

use std::path::{Path, PathBuf};

/// Files larger than this are not account files.
const ACCOUNT_FILE_BYTES_MAX: u64 = 4 * 1024 * 1024;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Account {
    pub name: String,
    pub uid: u32,
    pub gid: u32,
    /// Supplementary groups, the primary one included.
    pub groups: Vec<u32>,
    pub home: PathBuf,
    /// As the passwd entry has it; absent when there is no entry or it is empty.
    pub shell: Option<PathBuf>,
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum AccountError {
    /// The image or the spec is at fault: it names someone the image doesn't know.
    #[error("the image has no user {0:?}")]
    UnknownUser(String),
    #[error("the image has no group {0:?}")]
    UnknownGroup(String),
}

/// The two account files as they were when read. Names change seldom and files are small: read anew for each request.
#[derive(Debug, Clone, Default)]
pub struct Accounts {
    passwd: String,
    group: String,
}

impl Accounts {
    /// A missing or unreadable file counts as empty: such images exist (`FROM scratch`) and numeric ids still work.
    pub fn read(etc: &Path) -> Accounts {
        Accounts { passwd: read_small(&etc.join("passwd")), group: read_small(&etc.join("group")) }
    }

    /// `user` is what an image's USER may be: a name, an id, `name:group` or `uid:gid`; empty means root.
    pub fn resolve(&self, user: &str) -> Result<Account, AccountError> {
        let (user, group) = match user.split_once(':') {
            Some((user, group)) => (user, Some(group)),
            None => (user, None),
        };
        let user = if user.is_empty() { "0" } else { user };
        let mut account = match self.users().find(|entry| entry.name == user) {
            Some(entry) => entry.account(),
            None => {
                let uid: u32 = user.parse().map_err(|_| AccountError::UnknownUser(user.to_owned()))?;
                self.users().find(|entry| entry.uid == uid).map(|entry| entry.account()).unwrap_or_else(
                    || Account {
                        name: uid.to_string(),
                        uid,
                        gid: if uid == 0 { 0 } else { uid },
                        groups: Vec::new(),
                        home: PathBuf::from("/"),
                        shell: None,
                    },
                )
            }
        };
        if let Some(group) = group.filter(|group| !group.is_empty()) {
            account.gid = self.gid_of(group).ok_or_else(|| AccountError::UnknownGroup(group.to_owned()))?;
        }
        account.groups = vec![account.gid];
        for (gid, members) in self.groups().map(|(_, gid, members)| (gid, members)) {
            if members.split(',').any(|member| member == account.name) && !account.groups.contains(&gid) {
                account.groups.push(gid);
            }
        }
        Ok(account)
    }

    /// The name, or the number when nobody has it.
    pub fn user_name(&self, uid: u32) -> String {
        self.users()
            .find(|entry| entry.uid == uid)
            .map_or_else(|| uid.to_string(), |entry| entry.name.to_owned())
    }

    pub fn group_name(&self, gid: u32) -> String {
        self.groups()
            .find(|(_, id, _)| *id == gid)
            .map_or_else(|| gid.to_string(), |(name, _, _)| name.to_owned())
    }

    pub fn uid_of(&self, name_or_id: &str) -> Option<u32> {
        self.users()
            .find(|entry| entry.name == name_or_id)
            .map(|entry| entry.uid)
            .or_else(|| name_or_id.parse().ok())
    }

    pub fn gid_of(&self, name_or_id: &str) -> Option<u32> {
        self.groups()
            .find(|(name, _, _)| *name == name_or_id)
            .map(|(_, gid, _)| gid)
            .or_else(|| name_or_id.parse().ok())
    }

    fn users(&self) -> impl Iterator<Item = PasswdEntry<'_>> {
        self.passwd.lines().filter_map(|line| {
            let mut fields = line.split(':');
            let name = fields.next().filter(|name| !name.is_empty())?;
            let uid = fields.nth(1)?.parse().ok()?;
            let gid = fields.next()?.parse().ok()?;
            let home = fields.nth(1)?;
            Some(PasswdEntry { name, uid, gid, home, shell: fields.next().unwrap_or_default() })
        })
    }

    fn groups(&self) -> impl Iterator<Item = (&str, u32, &str)> {
        self.group.lines().filter_map(|line| {
            let mut fields = line.split(':');
            let name = fields.next().filter(|name| !name.is_empty())?;
            let gid = fields.nth(1)?.parse().ok()?;
            Some((name, gid, fields.next().unwrap_or_default()))
        })
    }
}

struct PasswdEntry<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
    shell: &'a str,
}

impl PasswdEntry<'_> {
    fn account(&self) -> Account {
        Account {
            name: self.name.to_owned(),
            uid: self.uid,
            gid: self.gid,
            groups: Vec::new(),
            home: PathBuf::from(if self.home.is_empty() { "/" } else { self.home }),
            shell: (!self.shell.is_empty()).then(|| PathBuf::from(self.shell)),
        }
    }
}

fn read_small(path: &Path) -> String {
    use std::io::Read;
    let mut bytes = Vec::new();
    if let Ok(file) = std::fs::File::open(path) {
        // A failed read leaves what was read so far, which is the best there is.
        let _ = file.take(ACCOUNT_FILE_BYTES_MAX).read_to_end(&mut bytes);
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn accounts() -> Accounts {
        Accounts {
            passwd: "root:x:0:0:root:/root:/bin/bash\n# comment\nbroken:x\ndaytona:x:1000:1000:,,,:/home/daytona:/bin/zsh\nbare:x:7:7:::\n"
                .into(),
            group: "root:x:0:\nsudo:x:27:other,daytona\ndaytona:x:1000:\nvideo:x:44:daytona2\n".into(),
        }
    }

    #[test]
    fn a_name_gives_its_ids_home_shell_and_groups() {
        let account = accounts().resolve("daytona").unwrap();

        assert_eq!((account.uid, account.gid), (1000, 1000));
        assert_eq!(account.groups, [1000, 27]);
        assert_eq!(account.home, Path::new("/home/daytona"));
        assert_eq!(account.shell.as_deref(), Some(Path::new("/bin/zsh")));
    }

    #[test]
    fn an_id_without_an_entry_is_an_account_of_its_own() {
        let account = accounts().resolve("4242").unwrap();

        assert_eq!((account.uid, account.gid, account.name.as_str()), (4242, 4242, "4242"));
        assert_eq!(account.home, Path::new("/"));
    }

    #[test]
    fn user_and_group_may_both_be_named() {
        assert_eq!(accounts().resolve("daytona:sudo").unwrap().gid, 27);
        assert_eq!(accounts().resolve("1000:5").unwrap().groups, [5, 27]);
        assert_eq!(accounts().resolve("").unwrap().name, "root");
    }

    #[test]
    fn an_unknown_name_is_refused() {
        assert_eq!(accounts().resolve("ghost"), Err(AccountError::UnknownUser("ghost".into())));
        assert_eq!(accounts().resolve("root:ghosts"), Err(AccountError::UnknownGroup("ghosts".into())));
    }

    #[test]
    fn empty_fields_fall_back() {
        let account = accounts().resolve("bare").unwrap();

        assert_eq!(account.home, Path::new("/"));
        assert_eq!(account.shell, None);
    }
}
