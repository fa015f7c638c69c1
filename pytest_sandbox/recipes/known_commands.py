"""Which packages bring a command, by package manager: what migrate proposes.

Names are those of current releases: Debian and Ubuntu, Fedora, Arch, Alpine, openSUSE, Homebrew.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

_ROWS: Final = """
command     apt                 dnf                     pacman          apk                     zypper                  brew
awk         gawk                gawk                    gawk            gawk                    gawk                    gawk
bash        bash                bash                    bash            bash                    bash                    bash
bzip2       bzip2               bzip2                   bzip2           bzip2                   bzip2                   bzip2
cargo       cargo               cargo                   rust            cargo                   cargo                   rust
cc          gcc                 gcc                     gcc             gcc                     gcc                     gcc
clang       clang               clang                   clang           clang                   clang                   llvm
cmake       cmake               cmake                   cmake           cmake                   cmake                   cmake
curl        curl                curl                    curl            curl                    curl                    curl
docker      docker.io           moby-engine,docker-cli  docker          docker                  docker                  -
file        file                file                    file            file                    file                    libmagic
g++         g++                 gcc-c++                 gcc             g++                     gcc-c++                 gcc
gcc         gcc                 gcc                     gcc             gcc                     gcc                     gcc
gdb         gdb                 gdb                     gdb             gdb                     gdb                     gdb
git         git                 git                     git             git                     git                     git
go          golang-go           golang                  go              go                      go                      go
gpg         gnupg               gnupg2                  gnupg           gnupg                   gpg2                    gnupg
gzip        gzip                gzip                    gzip            gzip                    gzip                    gzip
htop        htop                htop                    htop            htop                    htop                    htop
java        default-jre         java-latest-openjdk     jre-openjdk     openjdk21-jre           java-21-openjdk         openjdk
jq          jq                  jq                      jq              jq                      jq                      jq
less        less                less                    less            less                    less                    less
make        make                make                    make            make                    make                    make
meson       meson               meson                   meson           meson                   meson                   meson
ninja       ninja-build         ninja-build             ninja           ninja-build             ninja                   ninja
node        nodejs              nodejs                  nodejs          nodejs                  nodejs-default          node
npm         npm                 nodejs-npm              npm             npm                     npm-default             node
openssl     openssl             openssl                 openssl         openssl                 openssl                 openssl@3
patch       patch               patch                   patch           patch                   patch                   -
perl        perl                perl                    perl            perl                    perl                    perl
pip3        python3-pip         python3-pip             python-pip      py3-pip                 python3-pip             python
pipx        pipx                pipx                    python-pipx     pipx                    python3-pipx            pipx
pkg-config  pkgconf             pkgconf-pkg-config      pkgconf         pkgconf                 pkgconf-pkg-config      pkgconf
podman      podman              podman                  podman          podman                  podman                  podman
psql        postgresql-client   postgresql              postgresql      postgresql-client       postgresql              libpq
python3     python3             python3                 python          python3                 python3                 python
rg          ripgrep             ripgrep                 ripgrep         ripgrep                 ripgrep                 ripgrep
rsync       rsync               rsync                   rsync           rsync                   rsync                   rsync
ruby        ruby                ruby                    ruby            ruby                    ruby                    ruby
rustc       rustc               rust                    rust            rust                    rust                    rust
sqlite3     sqlite3             sqlite                  sqlite          sqlite                  sqlite3                 sqlite
ssh         openssh-client      openssh-clients         openssh         openssh-client-default  openssh-clients         -
strace      strace              strace                  strace          strace                  strace                  -
sudo        sudo                sudo                    sudo            sudo                    sudo                    -
tar         tar                 tar                     tar             tar                     tar                     gnu-tar
tmux        tmux                tmux                    tmux            tmux                    tmux                    tmux
unzip       unzip               unzip                   unzip           unzip                   unzip                   unzip
vim         vim                 vim-enhanced            vim             vim                     vim                     vim
wget        wget                wget2-wget              wget            wget                    wget                    wget
xz          xz-utils            xz                      xz              xz                      xz                      xz
zip         zip                 zip                     zip             zip                     zip                     zip
zsh         zsh                 zsh                     zsh             zsh                     zsh                     zsh
zstd        zstd                zstd                    zstd            zstd                    zstd                    zstd
"""  # noqa: E501 - a table is read in rows


def _table() -> dict[str, Mapping[str, tuple[str, ...]]]:
    heading, *rows = (line.split() for line in _ROWS.splitlines() if line)
    return {
        command: MappingProxyType(
            {
                manager: tuple(names.split(","))
                for manager, names in zip(heading[1:], cells, strict=True)
                if names != "-"
            }
        )
        for command, *cells in rows
    }


KNOWN_COMMANDS: Final[Mapping[str, Mapping[str, tuple[str, ...]]]] = MappingProxyType(_table())
"""Command -> package manager -> packages. A command that is not here (nvcc) needs a person."""
