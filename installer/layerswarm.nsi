; The setup program. Everything that can wait for a Python is in pc/: this file unpacks, has uv make a virtual
; environment, and hands over. Built by build.py, which defines VERSION, PYTHON, STAGE, OUT, INSTALLED and, for the
; variant with all packages inside, OFFLINE.
Target amd64-unicode
SetCompressor lzma
RequestExecutionLevel user
ManifestDPIAware true
ManifestSupportedOS Win10

!include MUI2.nsh
!include FileFunc.nsh
!include LogicLib.nsh

!define KEY "Software\Microsoft\Windows\CurrentVersion\Uninstall\layerswarm"
!define MENU "$SMPROGRAMS\layerswarm"

; Exit codes; those of pc/failure.py.
!define E_USAGE 10
!define E_PYTHON 11
!define E_IN_USE 14
!define E_PARTLY 17

Name "layerswarm ${VERSION}"
OutFile "${OUT}"
InstallDir "$LOCALAPPDATA\Programs\layerswarm"
InstallDirRegKey HKCU "${KEY}" "InstallLocation"
ShowInstDetails show
ShowUninstDetails show
BrandingText " "
VIProductVersion "${VERSION}.0"
VIAddVersionKey "ProductName" "layerswarm"
VIAddVersionKey "FileDescription" "Setup of layerswarm"
VIAddVersionKey "FileVersion" "${VERSION}"
VIAddVersionKey "ProductVersion" "${VERSION}"
VIAddVersionKey "LegalCopyright" "The layerswarm contributors, Apache-2.0"

Var Arguments ; of the setup program, without its name
Var Python    ; given by /PYTHON=, or empty
Var LogFile
Var Code      ; of the step that ran last
Var Message   ; what to tell people
Var Purge
Var Upgrade

!define MUI_ABORTWARNING
!define MUI_FINISHPAGE_NOAUTOCLOSE
!define MUI_FINISHPAGE_RUN "$SYSDIR\cmd.exe"
!define MUI_FINISHPAGE_RUN_PARAMETERS "/k $\"$\"$INSTDIR\bin\swarm.exe$\" up$\""
!define MUI_FINISHPAGE_RUN_TEXT "Try it: start a small model on this PC and open the chat page"
!define MUI_FINISHPAGE_RUN_NOTCHECKED
!insertmacro MUI_PAGE_LICENSE "${STAGE}/licences/SETUP.txt"
!insertmacro MUI_PAGE_COMPONENTS
!insertmacro MUI_PAGE_DIRECTORY
!insertmacro MUI_PAGE_INSTFILES
!insertmacro MUI_PAGE_FINISH
!insertmacro MUI_UNPAGE_CONFIRM
!insertmacro MUI_UNPAGE_INSTFILES
!insertmacro MUI_LANGUAGE "English"

!macro Option NAME VARIABLE DEFAULT
  ClearErrors
  ${GetOptions} $Arguments "/${NAME}=" ${VARIABLE}
  ${If} ${Errors}
    StrCpy ${VARIABLE} "${DEFAULT}"
  ${EndIf}
!macroend

!macro Environment NAME VALUE
  System::Call 'kernel32::SetEnvironmentVariable(t "${NAME}", t "${VALUE}")'
!macroend

; Run a program: its words go to the list that people see or, where it is silent, to the log. $Code is its exit code.
!macro Run COMMAND
  ${If} ${Silent}
    nsExec::ExecToStack '${COMMAND}'
    Pop $Code
    Pop $0
    Push $0
    Call Keep
  ${Else}
    nsExec::ExecToLog '${COMMAND}'
    Pop $Code
  ${EndIf}
!macroend

; Our files and nothing else: the folder may be one that holds other things.
!macro RemoveFiles
  SetDetailsPrint none
  SetOutPath "$TEMP" ; a folder that is in use cannot be deleted
  RMDir /r "$INSTDIR\bin"
  RMDir /r "$INSTDIR\venv"
  RMDir /r "$INSTDIR\python"
  RMDir /r "$INSTDIR\cache"
  RMDir /r "$INSTDIR\setup"
  RMDir /r "$INSTDIR\licences"
  Delete "$INSTDIR\uninstall.exe"
  RMDir "$INSTDIR" ; stays where changes.json does
  SetDetailsPrint both
!macroend

; Take a text from the stack and append it to the log.
Function Keep
  Exch $1
  Push $2
  FileOpen $2 "$LogFile" a
  FileSeek $2 0 END
  FileWrite $2 "$1$\r$\n"
  FileClose $2
  Pop $2
  Pop $1
FunctionEnd

; The message that a step of pc/ has left, in $Message.
!macro ReadReason PREFIX
Function ${PREFIX}ReadReason
  StrCpy $Message "The setup was stopped by an error of its own (exit code $Code)."
  ClearErrors
  FileOpen $0 "$PLUGINSDIR\reason.txt" r
  ${IfNot} ${Errors}
    FileReadUTF16LE $0 $Message
    FileClose $0
  ${EndIf}
FunctionEnd
!macroend
!insertmacro ReadReason ""
!insertmacro ReadReason "un."

; Stop with the message on the stack, which is not in the log yet, and $Code.
Function KeepAndStop
  Pop $Message
  Push "$Message"
  Call Keep
  Call Stop
FunctionEnd

; Stop with $Message and $Code.
Function Stop
  DetailPrint "$Message"
  MessageBox MB_OK|MB_ICONSTOP "$Message$\n$\nWhat was done is in $LogFile" /SD IDOK
  SetErrorLevel $Code
  Abort
FunctionEnd

Function .onInit
  InitPluginsDir
  ${GetParameters} $Arguments
  !insertmacro Option "PYTHON" $Python ""
  !insertmacro Option "LOG" $LogFile "$TEMP\layerswarm-setup.log"
  !insertmacro Option "PATH" $0 "1"
  ${If} $0 == "0"
    !insertmacro UnselectSection 2
  ${EndIf}
  !insertmacro Option "SHORTCUTS" $0 "1"
  ${If} $0 == "0"
    !insertmacro UnselectSection 1
  ${EndIf}
  !insertmacro Option "FIREWALL" $0 "0"
  ${If} $0 == "1"
    !insertmacro SelectSection 3
  ${EndIf}
FunctionEnd

Function PrepareFolder
  Delete "$LogFile"
  ${If} ${FileExists} "$INSTDIR\uninstall.exe"
    DetailPrint "Removing the version that is here"
    ExecWait '"$INSTDIR\uninstall.exe" /S /UPGRADE=1 _?=$INSTDIR' $Code
    ${If} $Code != 0
      StrCpy $Code ${E_IN_USE}
      Push "The version that is here cannot be replaced while its programs run. Close them and start the setup again."
      Call KeepAndStop
    ${EndIf}
    Delete "$INSTDIR\uninstall.exe"
  ${ElseIfNot} ${FileExists} "$INSTDIR\changes.json" ; of an update that failed
    ${DirState} "$INSTDIR" $0
    ${If} $0 == 1
      StrCpy $Code ${E_USAGE}
      Push "$INSTDIR holds files of something else. Choose another folder."
      Call KeepAndStop
    ${EndIf}
  ${EndIf}
FunctionEnd

; 0
Section "layerswarm (needed)" needed
  SectionIn RO
  AddSize ${INSTALLED}
  Call PrepareFolder
  DetailPrint "Unpacking"
  SetDetailsPrint none
  SetOutPath "$INSTDIR"
  File /r "${STAGE}/licences"
  File /r /x wheels "${STAGE}/setup"
  SetOutPath "$INSTDIR\setup\wheels"
  SetCompress off ; wheels are compressed
  File "${STAGE}/setup/wheels/*.whl"
  SetCompress auto
  WriteUninstaller "$INSTDIR\uninstall.exe"
  SetOutPath "$INSTDIR\setup"
  SetDetailsPrint both

  ; Files of other projects must not change what uv does, and it must leave nothing outside of our folder.
  !insertmacro Environment "UV_NO_CONFIG" "1"
  !insertmacro Environment "UV_NO_PROGRESS" "1"
  !insertmacro Environment "UV_CACHE_DIR" "$INSTDIR\cache"
  !insertmacro Environment "UV_PYTHON_INSTALL_DIR" "$INSTDIR\python"
  !insertmacro Environment "UV_PYTHON_INSTALL_REGISTRY" "0"
  !insertmacro Environment "UV_PYTHON_INSTALL_BIN" "0"
  !insertmacro Environment "SETUP_ARGUMENTS" "$Arguments"
  StrCpy $1 "--managed-python"
  !ifdef OFFLINE
    StrCpy $1 "--no-managed-python --no-python-downloads --offline"
  !endif
  ${If} $Python != ""
    StrCpy $1 "--no-python-downloads"
  ${Else}
    StrCpy $Python "${PYTHON}"
  ${EndIf}
  DetailPrint "Making an environment with Python $Python"
  !insertmacro Run '"$INSTDIR\setup\uv.exe" venv --python "$Python" $1 "$INSTDIR\venv"'
  ${If} $Code != 0
    StrCpy $Code ${E_PYTHON}
    !insertmacro RemoveFiles
    !ifdef OFFLINE
      Push "Python ${PYTHON} (64-bit) is needed and was not found. Install it from www.python.org, or give the setup /PYTHON=path\python.exe. This variant brings no Python along."
    !else
      Push "Python $Python could not be had. Check the network (a proxy is taken from HTTPS_PROXY) or give the setup an installed Python: /PYTHON=path\python.exe"
    !endif
    Call KeepAndStop
  ${EndIf}

  StrCpy $1 "--version ${VERSION}"
  !ifdef OFFLINE
    StrCpy $1 "$1 --offline"
  !endif
  ${If} ${Silent}
    StrCpy $1 "$1 --silent"
  ${EndIf}
  ${If} ${SectionIsSelected} 2
    StrCpy $1 "$1 --path"
  ${EndIf}
  ${If} ${SectionIsSelected} 3
    StrCpy $1 "$1 --firewall"
  ${EndIf}
  ; It writes the log itself, so its words are not kept twice.
  nsExec::ExecToLog '"$INSTDIR\venv\Scripts\python.exe" -E -u "$INSTDIR\setup\setup_steps.py" --log "$LogFile" --reason "$PLUGINSDIR\reason.txt" install $1'
  Pop $Code
  ${If} $Code != 0
    Call ReadReason
    ${If} $Code == ${E_PARTLY}
      DetailPrint "$Message"
      MessageBox MB_OK|MB_ICONEXCLAMATION "$Message" /SD IDOK
      SetErrorLevel ${E_PARTLY}
    ${Else}
      !insertmacro RemoveFiles
      Call Stop
    ${EndIf}
  ${EndIf}

  WriteRegStr HKCU "${KEY}" "DisplayName" "layerswarm"
  WriteRegStr HKCU "${KEY}" "DisplayVersion" "${VERSION}"
  WriteRegStr HKCU "${KEY}" "Publisher" "The layerswarm contributors"
  WriteRegStr HKCU "${KEY}" "DisplayIcon" "$INSTDIR\uninstall.exe"
  WriteRegStr HKCU "${KEY}" "InstallLocation" "$INSTDIR"
  WriteRegStr HKCU "${KEY}" "UninstallString" '"$INSTDIR\uninstall.exe"'
  WriteRegStr HKCU "${KEY}" "QuietUninstallString" '"$INSTDIR\uninstall.exe" /S'
  WriteRegDWORD HKCU "${KEY}" "EstimatedSize" ${INSTALLED}
  WriteRegDWORD HKCU "${KEY}" "NoModify" 1
  WriteRegDWORD HKCU "${KEY}" "NoRepair" 1
SectionEnd

; 1
Section "Start menu entries" shortcuts
  CreateDirectory "${MENU}"
  SetOutPath "$PROFILE" ; where the programs start
  CreateShortcut "${MENU}\Chat on this PC.lnk" "$SYSDIR\cmd.exe" '/k ""$INSTDIR\bin\swarm.exe" up"'
  CreateShortcut "${MENU}\Add this PC to a swarm.lnk" "$SYSDIR\cmd.exe" '/k ""$INSTDIR\venv\Scripts\python.exe" "$INSTDIR\setup\setup_steps.py" join"'
  CreateShortcut "${MENU}\Swarm console.lnk" "$SYSDIR\cmd.exe" '/k ""$INSTDIR\setup\console.cmd""'
  CreateShortcut "${MENU}\Swarm doctor.lnk" "$SYSDIR\cmd.exe" '/k ""$INSTDIR\bin\swarm.exe" doctor"'
  CreateShortcut "${MENU}\Uninstall layerswarm.lnk" "$INSTDIR\uninstall.exe"
SectionEnd

; 2
Section "Programs on your PATH" path
SectionEnd

; 3
Section /o "Firewall rule (asks for an administrator)" firewall
SectionEnd

LangString needed_text ${LANG_ENGLISH} "The programs, with a Python environment of their own. For you only; no administrator is needed."
LangString shortcuts_text ${LANG_ENGLISH} "Chat, adding this PC to a swarm, a console, the doctor, and the uninstaller."
LangString path_text ${LANG_ENGLISH} "So that consoles find swarm, swarm-server and the others. Only the folder bin is added."
LangString firewall_text ${LANG_ENGLISH} "netsh advfirewall firewall add rule name=layerswarm dir=in action=allow protocol=TCP profile=private,domain program=(the Python that listens). Only servers and directories need it."
!insertmacro MUI_FUNCTION_DESCRIPTION_BEGIN
  !insertmacro MUI_DESCRIPTION_TEXT ${needed} $(needed_text)
  !insertmacro MUI_DESCRIPTION_TEXT ${shortcuts} $(shortcuts_text)
  !insertmacro MUI_DESCRIPTION_TEXT ${path} $(path_text)
  !insertmacro MUI_DESCRIPTION_TEXT ${firewall} $(firewall_text)
!insertmacro MUI_FUNCTION_DESCRIPTION_END

Function un.onInit
  InitPluginsDir
  ${GetParameters} $Arguments
  !insertmacro Option "PURGE" $Purge "0"
  !insertmacro Option "UPGRADE" $Upgrade "0"
FunctionEnd

; What was changed outside of the folder and, when asked for, what the programs made.
Function un.TakeBack
  StrCpy $1 ""
  ${If} ${Silent}
    StrCpy $1 "--silent"
  ${EndIf}
  ${If} $Purge != "1"
    MessageBox MB_YESNO|MB_DEFBUTTON2 "Also delete the models that were fetched, this PC's identity and your settings (SWARM_HOME, by default $LOCALAPPDATA\swarm)?" /SD IDNO IDNO keep
    StrCpy $Purge "1"
    keep:
  ${EndIf}
  ${If} $Purge == "1"
    StrCpy $1 "$1 --purge"
  ${EndIf}
  nsExec::ExecToLog '"$INSTDIR\venv\Scripts\python.exe" -E -u "$INSTDIR\setup\setup_steps.py" --reason "$PLUGINSDIR\reason.txt" uninstall $1'
  Pop $Code
  ${If} $Code != 0
    Call un.ReadReason
    MessageBox MB_OK|MB_ICONEXCLAMATION "$Message" /SD IDOK
    SetErrorLevel ${E_PARTLY}
  ${EndIf}
FunctionEnd

; End the service, and wait for a while until no program of ours runs: all are python.exe or pythonw.exe of venv, and
; a program that runs cannot be opened for writing. $0 is 1 when it is so.
Function un.AwaitIdle
  nsExec::Exec 'schtasks /End /TN "layerswarm server"'
  Pop $0
  StrCpy $0 0
  StrCpy $1 20
  ${DoWhile} $1 > 0
    ClearErrors
    FileOpen $2 "$INSTDIR\venv\Scripts\python.exe" a
    FileOpen $3 "$INSTDIR\venv\Scripts\pythonw.exe" a
    ${IfNot} ${Errors}
      StrCpy $0 1
      StrCpy $1 0
    ${EndIf}
    FileClose $2
    FileClose $3
    ${If} $1 > 0
      Sleep 500
      IntOp $1 $1 - 1
    ${EndIf}
  ${Loop}
FunctionEnd

Section Uninstall
  ${If} ${FileExists} "$INSTDIR\venv\Scripts\python.exe"
  ${AndIf} ${FileExists} "$INSTDIR\setup\setup_steps.py"
    again:
    Call un.AwaitIdle
    ${If} $0 != 1
      MessageBox MB_RETRYCANCEL|MB_ICONEXCLAMATION "Programs of the swarm are running. Close them first." /SD IDCANCEL IDRETRY again
      SetErrorLevel ${E_IN_USE}
      Abort
    ${EndIf}
    ${If} $Upgrade != "1"
      Call un.TakeBack
    ${EndIf}
  ${EndIf}
  ${If} $Upgrade != "1" ; PATH, task and rule stay, and what is known of them
    Delete "$INSTDIR\changes.json"
    Delete "$TEMP\layerswarm-setup.log"
  ${EndIf}
  Delete "${MENU}\*.lnk"
  RMDir "${MENU}"
  DeleteRegKey HKCU "${KEY}"
  !insertmacro RemoveFiles
  ${If} ${FileExists} "$INSTDIR\venv\*.*"
    MessageBox MB_OK|MB_ICONEXCLAMATION "Some files in $INSTDIR are in use and could not be deleted." /SD IDOK
    SetErrorLevel ${E_IN_USE}
  ${EndIf}
SectionEnd
