@rem A console in which the programs are found. They are in %~dp0..\bin.
@set "PATH=%~dp0..\bin;%PATH%"
@swarm --help
