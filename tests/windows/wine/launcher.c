/* python.exe: hands its arguments to the interpreter in the DLL beside it. */
#include <windows.h>

typedef int (*Main)(int, wchar_t **);

int wmain(int argc, wchar_t **argv)
{
    HMODULE interpreter = LoadLibraryW(PYTHON_DLL);
    Main run = interpreter ? (Main)(void *)GetProcAddress(interpreter, "Py_Main") : NULL;
    return run ? run(argc, argv) : 101;
}
