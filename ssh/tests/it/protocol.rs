//! What stock clients do only with a person at the keyboard: resizes, signals, several channels of one connection.

use std::sync::Arc;

use russh::client::{self, Handle};
use russh::keys::ssh_key::private::{Ed25519Keypair, KeypairData};
use russh::keys::{PrivateKey, PrivateKeyWithHashAlg};
use russh::{ChannelMsg, Disconnect, Sig};

use crate::world::{World, within_patience};

struct AnyHost;

impl client::Handler for AnyHost {
    type Error = russh::Error;

    async fn check_server_key(
        &mut self,
        _key: &russh::keys::PublicKeyOrCertificate,
    ) -> Result<bool, russh::Error> {
        Ok(true)
    }
}

async fn log_in(world: &World) -> Handle<AnyHost> {
    let config = Arc::new(client::Config::default());
    let mut session = client::connect(config, world.server.local_addr(), AnyHost).await.unwrap();
    assert!(session.authenticate_none(&world.token).await.unwrap().success());
    session
}

#[tokio::test]
async fn every_method_of_authentication_takes_a_valid_token_and_no_other() {
    let world = World::new().await;
    for user in [world.token.as_str(), "05aaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"] {
        let valid = user == world.token;
        let config = Arc::new(client::Config::default());
        let connect = || client::connect(config.clone(), world.server.local_addr(), AnyHost);

        let password = connect().await.unwrap().authenticate_password(user, "anything").await;
        assert_eq!(password.is_ok_and(|answer| answer.success()), valid);
        let interactive = connect().await.unwrap().authenticate_keyboard_interactive_start(user, None).await;
        let succeeded = matches!(interactive, Ok(client::KeyboardInteractiveAuthResponse::Success));
        assert_eq!(succeeded, valid);
        let pair = KeypairData::Ed25519(Ed25519Keypair::from_seed(&[1; 32]));
        let key = PrivateKeyWithHashAlg::new(Arc::new(PrivateKey::new(pair, "").unwrap()), None);
        let publickey = connect().await.unwrap().authenticate_publickey(user, key).await;
        assert_eq!(publickey.is_ok_and(|answer| answer.success()), valid);
    }
}

#[tokio::test]
async fn a_client_that_fills_memory_is_cut_and_its_memory_is_free_again() {
    let limits = atoll_ssh::SshLimits { input_bytes_max: 3 * 1024 * 1024, ..Default::default() };
    let world = World::with_limits(limits).await;
    let greedy = log_in(&world).await;
    for _ in 0..2 {
        let stuck = greedy.channel_open_session().await.unwrap();
        stuck.exec(true, "exec sleep 1000").await.unwrap();
        tokio::spawn(async move { stuck.data(&vec![0; 3 * 1024 * 1024][..]).await });
    }
    within_patience(greedy).await.unwrap_err();

    let modest = log_in(&world).await;
    let mut channel = modest.channel_open_session().await.unwrap();
    channel.exec(true, "wc -c").await.unwrap();
    channel.data(&vec![0; 2 * 1024 * 1024][..]).await.unwrap();
    channel.eof().await.unwrap();

    read_until(&mut channel, "2097152").await;
}

async fn read_until(channel: &mut russh::Channel<client::Msg>, wanted: &str) {
    let mut shown = Vec::new();
    within_patience(async {
        while !String::from_utf8_lossy(&shown).contains(wanted) {
            match channel.wait().await {
                Some(ChannelMsg::Data { data }) => shown.extend_from_slice(&data),
                Some(_) => {}
                None => panic!("closed before {wanted:?}: {}", String::from_utf8_lossy(&shown)),
            }
        }
    })
    .await;
}

async fn read_exit(channel: &mut russh::Channel<client::Msg>) -> ChannelMsg {
    within_patience(async {
        loop {
            match channel.wait().await {
                Some(exit @ (ChannelMsg::ExitStatus { .. } | ChannelMsg::ExitSignal { .. })) => return exit,
                Some(_) => {}
                None => panic!("closed without an exit"),
            }
        }
    })
    .await
}

#[tokio::test]
async fn a_resize_reaches_the_program() {
    let world = World::new().await;
    let session = log_in(&world).await;
    let mut channel = session.channel_open_session().await.unwrap();
    channel.request_pty(true, "xterm", 80, 24, 0, 0, &[]).await.unwrap();
    let program = "trap 'stty size; exit 0' WINCH; stty size; while :; do sleep 0.02; done";
    channel.exec(true, program).await.unwrap();
    read_until(&mut channel, "24 80").await;

    channel.window_change(132, 43, 0, 0).await.unwrap();

    read_until(&mut channel, "43 132").await;
}

#[tokio::test]
async fn a_signal_reaches_the_program_and_a_deadly_one_is_reported() {
    let world = World::new().await;
    let session = log_in(&world).await;
    let mut channel = session.channel_open_session().await.unwrap();
    channel.exec(true, "trap 'echo caught' USR1; echo ready; while :; do sleep 0.02; done").await.unwrap();
    read_until(&mut channel, "ready").await;

    channel.signal(Sig::USR1).await.unwrap();
    read_until(&mut channel, "caught").await;
    channel.signal(Sig::TERM).await.unwrap();

    assert!(matches!(read_exit(&mut channel).await, ChannelMsg::ExitSignal { signal_name: Sig::TERM, .. }));
}

#[tokio::test]
async fn a_channel_whose_input_nobody_reads_does_not_stop_its_neighbours() {
    let world = World::new().await;
    let session = log_in(&world).await;
    let stuck = session.channel_open_session().await.unwrap();
    stuck.exec(true, "exec sleep 1000").await.unwrap();
    // All that the window allows, which is far more than pipes and frames on the way hold.
    let filler = tokio::spawn(async move {
        let _ = stuck.data(&vec![0; 16 * 1024 * 1024][..]).await;
        stuck
    });

    for _ in 0..20 {
        let mut other = session.channel_open_session().await.unwrap();
        other.exec(true, "head -c 300000 /dev/zero; exit 4").await.unwrap();
        assert!(matches!(read_exit(&mut other).await, ChannelMsg::ExitStatus { exit_status: 4 }));
    }

    assert!(!filler.is_finished(), "a client must not be allowed to send what nobody reads");
    filler.abort();
}

#[tokio::test]
async fn one_channel_runs_one_program() {
    let world = World::new().await;
    let session = log_in(&world).await;
    let mut channel = session.channel_open_session().await.unwrap();
    channel.exec(true, "cat; exit 5").await.unwrap();

    channel.exec(true, "echo second").await.unwrap();
    channel.request_subsystem(true, "sftp").await.unwrap();
    channel.set_env(true, "LATE", "1").await.unwrap();
    channel.eof().await.unwrap();

    let mut failures = 0;
    let exit_status = within_patience(async {
        loop {
            match channel.wait().await.expect("it exits") {
                ChannelMsg::Failure => failures += 1,
                ChannelMsg::ExitStatus { exit_status } => return exit_status,
                ChannelMsg::Data { data } => panic!("{data:?}"),
                _ => {}
            }
        }
    })
    .await;
    assert_eq!((failures, exit_status), (3, 5));
}

#[tokio::test]
async fn channels_of_a_connection_are_bounded_and_given_back() {
    let limits = atoll_ssh::SshLimits { channels_per_connection_max: 3, ..Default::default() };
    let world = World::with_limits(limits).await;
    let session = log_in(&world).await;
    let mut open = Vec::new();
    for _ in 0..3 {
        open.push(session.channel_open_session().await.unwrap());
    }

    assert!(session.channel_open_session().await.is_err());

    let mut last = open.pop().unwrap();
    last.exec(true, "exit 0").await.unwrap();
    read_exit(&mut last).await;
    within_patience(async { while last.wait().await.is_some() {} }).await;
    assert!(session.channel_open_session().await.is_ok());
}

#[tokio::test]
async fn closing_a_channel_hangs_up_its_program() {
    let world = World::new().await;
    let session = log_in(&world).await;
    let mut channel = session.channel_open_session().await.unwrap();
    let marker = world.path("alive");
    // While the program lives it makes the marker again.
    let program = format!("echo ready; while :; do touch {}; sleep 0.02; done", marker.display());
    channel.exec(true, program).await.unwrap();
    read_until(&mut channel, "ready").await;

    channel.close().await.unwrap();

    within_patience(async {
        loop {
            let _ = std::fs::remove_file(&marker);
            tokio::time::sleep(std::time::Duration::from_millis(300)).await;
            if !marker.exists() {
                return;
            }
        }
    })
    .await;
    session.disconnect(Disconnect::ByApplication, "", "").await.unwrap();
}
