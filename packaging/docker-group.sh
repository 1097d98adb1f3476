# meshd reads which containers run from Docker's socket, which only root and the group `docker` may open. The package adds its user to
# this group once: when the package is installed, or later when Docker is. Whoever takes the user out of the group again is not
# overruled, because the file below says that it was done. Where there is no Docker, no group is made.
give_docker_group() {
  given=/var/lib/misc/meshd-docker-group
  if [ -e "$given" ] || ! getent group docker >/dev/null; then return 1; fi
  usermod -aG docker meshd
  mkdir -p /var/lib/misc
  : >"$given"
  echo "meshd: added its user to the group docker, so that it can follow containers (undo: gpasswd -d meshd docker)"
}
