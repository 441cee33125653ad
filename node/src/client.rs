//! The user's and operator's commands: a thin client of the REST API, like any other.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use crate::cli::{ApiArgs, SandboxCommand};

const DEADLINE: Duration = Duration::from_secs(60);

pub struct Client {
    http: reqwest::Client,
    base: String,
    key: String,
}

impl Client {
    pub fn new(api: &ApiArgs) -> Result<Client> {
        let mut builder = reqwest::Client::builder().timeout(DEADLINE).no_proxy();
        if let Some(path) = &api.ca_cert {
            let pem = std::fs::read(path).with_context(|| format!("read {}", path.display()))?;
            builder = builder.tls_certs_only([reqwest::Certificate::from_pem(&pem).context("read the CA")?]);
        }
        let base = api.api_url.trim_end_matches('/').to_owned();
        Ok(Client { http: builder.build().context("make an HTTP client")?, base, key: api.api_key.clone() })
    }

    pub async fn join_token(&self, ttl_s: u64, uses: u32) -> Result<String> {
        let body = json!({ "ttlSeconds": ttl_s, "uses": uses });
        let answer = self.send(reqwest::Method::POST, "/cluster/tokens", Some(body)).await?;
        Ok(text(&answer, "token")?.to_owned())
    }

    pub async fn create_token(&self, ttl_s: u64, uses: u32) -> Result<()> {
        println!("{}", self.join_token(ttl_s, uses).await?);
        Ok(())
    }

    /// Each group's name and how many voters it has.
    pub async fn groups(&self) -> Result<Vec<(String, usize)>> {
        let cluster = self.send(reqwest::Method::GET, "/cluster", None).await?;
        let groups = cluster["groups"].as_array().context("answer has no groups")?;
        groups
            .iter()
            .map(|group| {
                Ok((text(group, "name")?.to_owned(), group["voters"].as_array().map_or(0, Vec::len)))
            })
            .collect()
    }

    pub async fn cluster_status(&self) -> Result<()> {
        let cluster = self.send(reqwest::Method::GET, "/cluster", None).await?;
        println!("{}", serde_json::to_string_pretty(&cluster)?);
        Ok(())
    }

    async fn send(&self, method: reqwest::Method, path: &str, body: Option<Value>) -> Result<Value> {
        let url = format!("{}{path}", self.base);
        self.send_to(method, &url, body).await
    }

    async fn send_to(&self, method: reqwest::Method, url: &str, body: Option<Value>) -> Result<Value> {
        let mut request = self.http.request(method, url).bearer_auth(&self.key);
        if let Some(body) = body {
            request = request.json(&body);
        }
        let answer = request.send().await.with_context(|| format!("ask {url}"))?;
        let status = answer.status();
        let bytes = answer.bytes().await.context("read the answer")?;
        let value: Value = serde_json::from_slice(&bytes).unwrap_or(Value::Null);
        if !status.is_success() {
            bail!("{}", value["message"].as_str().unwrap_or(status.as_str()));
        }
        Ok(value)
    }
}

pub async fn run(command: SandboxCommand) -> Result<ExitCode> {
    use reqwest::Method;
    match command {
        SandboxCommand::Create { name, snapshot, target, env, labels, api } => {
            let mut body = json!({ "env": pairs(&env)?, "labels": pairs(&labels)? });
            for (key, value) in [("name", name), ("snapshot", snapshot), ("target", target)] {
                if let Some(value) = value {
                    body[key] = Value::String(value);
                }
            }
            let sandbox = Client::new(&api)?.send(Method::POST, "/sandbox", Some(body)).await?;
            println!("{}", text(&sandbox, "id")?);
            if let Some(reason) = sandbox["errorReason"].as_str() {
                bail!("the sandbox is in state {}: {reason}", sandbox["state"]);
            }
        }
        SandboxCommand::List { api } => {
            let client = Client::new(&api)?;
            let mut cursor = String::new();
            loop {
                let page = client.send(Method::GET, &format!("/sandbox?limit=200{cursor}"), None).await?;
                for item in page["items"].as_array().context("answer has no items")? {
                    println!(
                        "{}  {:<10} {:<8} {}",
                        text(item, "id")?,
                        text(item, "state")?,
                        text(item, "target")?,
                        text(item, "name")?
                    );
                }
                match page["nextCursor"].as_str() {
                    Some(next) => cursor = format!("&cursor={next}"),
                    None => break,
                }
            }
        }
        SandboxCommand::Exec { sandbox, command, api } => {
            let client = Client::new(&api)?;
            let found = client.send(Method::GET, &format!("/sandbox/{sandbox}"), None).await?;
            let url = format!("{}/{}/process/execute", text(&found, "toolboxProxyUrl")?, text(&found, "id")?);
            let answer =
                client.send_to(Method::POST, &url, Some(json!({ "command": shell_text(&command) }))).await?;
            print!("{}", answer["result"].as_str().unwrap_or_default());
            let code = answer["exitCode"].as_i64().unwrap_or(1);
            return Ok(ExitCode::from(u8::try_from(code).unwrap_or(1)));
        }
        SandboxCommand::Ssh { sandbox, api } => {
            let access = Client::new(&api)?
                .send(Method::POST, &format!("/sandbox/{sandbox}/ssh-access"), None)
                .await?;
            let command: Vec<&str> = text(&access, "sshCommand")?.split(' ').collect();
            let status = tokio::process::Command::new(command[0])
                .args(&command[1..])
                .status()
                .await
                .context("run ssh")?;
            return Ok(ExitCode::from(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1)));
        }
        SandboxCommand::Start { sandbox, api } => {
            change(&api, Method::POST, &format!("/sandbox/{sandbox}/start")).await?
        }
        SandboxCommand::Stop { sandbox, api } => {
            change(&api, Method::POST, &format!("/sandbox/{sandbox}/stop")).await?
        }
        SandboxCommand::Delete { sandbox, api } => {
            change(&api, Method::DELETE, &format!("/sandbox/{sandbox}")).await?
        }
    }
    Ok(ExitCode::SUCCESS)
}

async fn change(api: &ApiArgs, method: reqwest::Method, path: &str) -> Result<()> {
    let sandbox = Client::new(api)?.send(method, path, None).await?;
    println!("{}  {}", text(&sandbox, "id")?, text(&sandbox, "state")?);
    Ok(())
}

/// One word is shell text as it stands; several are words that a shell must leave as they are.
fn shell_text(words: &[String]) -> String {
    match words {
        [text] => text.clone(),
        words => words
            .iter()
            .map(|word| format!("'{}'", word.replace('\'', r"'\''")))
            .collect::<Vec<_>>()
            .join(" "),
    }
}

fn pairs<'a>(arguments: &'a [String]) -> Result<BTreeMap<&'a str, &'a str>> {
    let split = |argument: &'a String| {
        argument.split_once('=').with_context(|| format!("{argument}: expected KEY=VALUE"))
    };
    arguments.iter().map(split).collect()
}

fn text<'a>(value: &'a Value, key: &str) -> Result<&'a str> {
    value[key].as_str().with_context(|| format!("answer has no {key}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(words: &[&str]) -> Vec<String> {
        words.iter().map(|word| (*word).to_owned()).collect()
    }

    #[test]
    fn one_word_is_shell_text() {
        assert_eq!(shell_text(&words(&["echo $HOME && ls"])), "echo $HOME && ls");
    }

    #[test]
    fn several_words_keep_their_boundaries() {
        assert_eq!(shell_text(&words(&["sh", "-c", "exit 7"])), "'sh' '-c' 'exit 7'");
        assert_eq!(shell_text(&words(&["echo", "it's"])), r"'echo' 'it'\''s'");
    }
}
