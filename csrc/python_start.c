/* SPDX-License-Identifier: BSD-3-Clause */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <dlfcn.h>
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "python_start.h"

/* Set by the Makefile from the Python that it builds for; nothing in the environment changes them. */
#if !defined(BANKING_LIBDIR) || !defined(BANKING_PYTHON_STDLIB) || !defined(BANKING_PYTHON_DYNLOAD) || \
	!defined(BANKING_PYTHON_CFFI) || !defined(BANKING_PYTHON) || !defined(BANKING_PYTHON_PREFIX) || \
	!defined(BANKING_LIBPYTHON)
#error "build through csrc/Makefile: the import path is a set of compile-time constants"
#endif

#define STARTED_BY_US "_slurm_banking_started"

static const char *const import_path[] = {
	BANKING_PYTHON_STDLIB,
	BANKING_PYTHON_DYNLOAD,
	BANKING_LIBDIR,
	BANKING_PYTHON_CFFI,
};
#define IMPORT_PATH_COUNT (sizeof(import_path) / sizeof(import_path[0]))

/*
 * One component of a path. A parent that everybody may write to is fine if it is sticky (/tmp): what root made in it,
 * only root can replace. A symbolic link is as safe as the directory that holds it; where it leads is walked as well.
 */
static int check_component(const char *import_dir, const char *part, int last, char *why, size_t size)
{
	struct stat st;

	if (lstat(part, &st)) {
		snprintf(why, size, "import directory %s: %s%s%s; expected a directory owned by root (uid 0)", import_dir,
			 last ? "" : part, last ? "" : ": ", strerror(errno));
		return -1;
	}
	if (S_ISLNK(st.st_mode) && (st.st_uid == 0))
		return 0;
	if (S_ISDIR(st.st_mode) && (st.st_uid == 0)) {
		if (!(st.st_mode & (S_IWGRP | S_IWOTH)))
			return 0;
		if (!last && (st.st_mode & S_ISVTX))
			return 0;
	}
	snprintf(why, size,
		 "import directory %s: %s is %s, owner uid %u, mode %04o; "
		 "expected a directory owned by root (uid 0) that group and others cannot write to",
		 import_dir, part, S_ISDIR(st.st_mode) ? "a directory" : "not a directory", (unsigned) st.st_uid,
		 (unsigned) (st.st_mode & 07777));
	return -1;
}

static int check_every_parent(const char *import_dir, const char *path, char *why, size_t size)
{
	char part[PATH_MAX];

	if ((path[0] != '/') || (strlen(path) >= sizeof(part))) {
		snprintf(why, size, "import directory %s: expected an absolute path", import_dir);
		return -1;
	}
	if (check_component(import_dir, "/", path[1] == '\0', why, size))
		return -1;
	for (size_t i = 1; path[i]; i++) {
		int last = !path[i + 1];

		part[0] = '/';
		part[i] = path[i];
		if ((path[i + 1] != '/') && !last)
			continue;
		if (path[i] == '/')
			continue;
		part[i + 1] = '\0';
		memcpy(part, path, i + 1);
		if (check_component(import_dir, part, last, why, size))
			return -1;
	}
	return 0;
}

static int check_import_dir(const char *dir, char *why, size_t size)
{
	char resolved[PATH_MAX];

	if (check_every_parent(dir, dir, why, size))
		return -1;
	if (!realpath(dir, resolved)) {
		snprintf(why, size, "import directory %s: %s; expected a directory owned by root (uid 0)", dir,
			 strerror(errno));
		return -1;
	}
	return strcmp(dir, resolved) ? check_every_parent(dir, resolved, why, size) : 0;
}

static int check_import_path(char *why, size_t size)
{
	for (size_t i = 0; i < IMPORT_PATH_COUNT; i++) {
		if (check_import_dir(import_path[i], why, size))
			return -1;
	}
	/* without this file CPython gives up in the middle of starting, and cannot be asked twice in one process */
	if (access(BANKING_PYTHON_STDLIB "/encodings/__init__.py", R_OK)) {
		snprintf(why, size, "%s/encodings/__init__.py: %s; expected the standard library of Python %s",
			 BANKING_PYTHON_STDLIB, strerror(errno), PY_VERSION);
		return -1;
	}
	return check_import_dir(BANKING_LIBDIR "/slurm_banking", why, size);
}

/*
 * slurmctld opens plugins without RTLD_GLOBAL, so the libpython that came with us is known to us alone; but CPython's
 * own extension modules (_socket, _sqlite3, ...) are not linked to it and look for its symbols in the global scope.
 */
static int make_libpython_global(char *why, size_t size)
{
	if (dlopen(BANKING_LIBPYTHON, RTLD_NOW | RTLD_GLOBAL))
		return 0;
	snprintf(why, size, "%s cannot be opened: %s", BANKING_LIBPYTHON, dlerror());
	return -1;
}

static PyStatus set_string(PyConfig *config, wchar_t **field, const char *value)
{
	return PyConfig_SetBytesString(config, field, value);
}

static PyStatus start_isolated(void)
{
	PyPreConfig preconfig;
	PyConfig config;
	PyStatus status;

	PyPreConfig_InitIsolatedConfig(&preconfig);
	preconfig.utf8_mode = 1;	/* slurmctld's locale decides nothing */
	status = Py_PreInitialize(&preconfig);
	if (PyStatus_Exception(status))
		return status;

	/* isolated: no environment variable, no user's site directory, no current directory */
	PyConfig_InitIsolatedConfig(&config);
	config.install_signal_handlers = 0;	/* SIGINT and SIGPIPE are slurmctld's */
	config.site_import = 0;
	config.use_environment = 0;
	config.user_site_directory = 0;
	config.write_bytecode = 0;
	config.pathconfig_warnings = 0;
	config.parse_argv = 0;
	config.module_search_paths_set = 1;

	status = set_string(&config, &config.program_name, BANKING_PYTHON);
	if (!PyStatus_Exception(status))
		status = set_string(&config, &config.executable, BANKING_PYTHON);
	if (!PyStatus_Exception(status))
		status = set_string(&config, &config.base_executable, BANKING_PYTHON);
	if (!PyStatus_Exception(status))
		status = set_string(&config, &config.prefix, BANKING_PYTHON_PREFIX);
	if (!PyStatus_Exception(status))
		status = set_string(&config, &config.base_prefix, BANKING_PYTHON_PREFIX);
	if (!PyStatus_Exception(status))
		status = set_string(&config, &config.exec_prefix, BANKING_PYTHON_PREFIX);
	if (!PyStatus_Exception(status))
		status = set_string(&config, &config.base_exec_prefix, BANKING_PYTHON_PREFIX);
	for (size_t i = 0; (i < IMPORT_PATH_COUNT) && !PyStatus_Exception(status); i++) {
		wchar_t *entry = Py_DecodeLocale(import_path[i], NULL);

		status = entry ? PyWideStringList_Append(&config.module_search_paths, entry) : PyStatus_NoMemory();
		PyMem_RawFree(entry);
	}
	if (!PyStatus_Exception(status))
		status = Py_InitializeFromConfig(&config);
	PyConfig_Clear(&config);
	return status;
}

/* Python is there: by our other plugin, or by somebody else's, whose import path we do not trust? */
static int check_started_by_us(char *why, size_t size)
{
	PyGILState_STATE state = PyGILState_Ensure();
	int ours = PySys_GetObject(STARTED_BY_US) != NULL;

	PyGILState_Release(state);
	if (ours)
		return 0;
	snprintf(why, size, "another plugin has started Python in this process, with an import path that is not ours");
	return -1;
}

extern int banking_python_start(char *why, size_t size)
{
	PyStatus status;

	if (Py_IsInitialized())
		return check_started_by_us(why, size);
	if (check_import_path(why, size) || make_libpython_global(why, size))
		return -1;
	status = start_isolated();
	if (PyStatus_Exception(status)) {
		snprintf(why, size, "Python %s did not start with the standard library in %s: %s", PY_VERSION,
			 BANKING_PYTHON_STDLIB, status.err_msg ? status.err_msg : "no reason given");
		return -1;
	}
	PySys_SetObject(STARTED_BY_US, Py_True);
	PyEval_SaveThread();	/* the GIL is free: any thread may call; cffi takes and gives it */
	return 0;
}

/* Where a traceback's frame is: file and line; unless it is in the import system itself. */
static void frame_location(PyObject *traceback, char *where, size_t size)
{
	PyObject *frame = NULL, *code = NULL, *file = NULL, *line = NULL;
	const char *name = NULL;

	if ((frame = PyObject_GetAttrString(traceback, "tb_frame")) &&
	    (code = PyObject_GetAttrString(frame, "f_code")) && (file = PyObject_GetAttrString(code, "co_filename")) &&
	    (line = PyObject_GetAttrString(traceback, "tb_lineno")))
		name = PyUnicode_AsUTF8(file);
	if (name && (name[0] != '<'))
		snprintf(where, size, " (%s:%ld)", name, PyLong_AsLong(line));
	Py_XDECREF(line);
	Py_XDECREF(file);
	Py_XDECREF(code);
	Py_XDECREF(frame);
	PyErr_Clear();
}

/* The innermost frame that is in a file. Takes the traceback. */
static void append_location(PyObject *traceback, char *why, size_t size)
{
	char where[512] = "";
	size_t used = strlen(why);

	while (traceback && (traceback != Py_None)) {
		PyObject *next = PyObject_GetAttrString(traceback, "tb_next");

		frame_location(traceback, where, sizeof(where));
		Py_DECREF(traceback);
		traceback = next;
	}
	Py_XDECREF(traceback);
	PyErr_Clear();
	snprintf(why + used, size - used, "%s", where);
}

static PyObject *raised_exception(void)
{
#if PY_VERSION_HEX >= 0x030C0000
	return PyErr_GetRaisedException();
#else
	PyObject *type, *value, *traceback;

	PyErr_Fetch(&type, &value, &traceback);
	PyErr_NormalizeException(&type, &value, &traceback);
	if (value && traceback)
		PyException_SetTraceback(value, traceback);
	Py_XDECREF(type);
	Py_XDECREF(traceback);
	return value;
#endif
}

/* The pending exception as one line, "what: Type: text (file:line)". */
static void take_exception(const char *what, char *why, size_t size)
{
	PyObject *value = raised_exception(), *traceback, *text = NULL;
	const char *utf8 = NULL;

	traceback = value ? PyException_GetTraceback(value) : NULL;
	if (value && (text = PyObject_Str(value)))
		utf8 = PyUnicode_AsUTF8(text);
	snprintf(why, size, "%s: %s: %s", what, value ? Py_TYPE(value)->tp_name : "unknown error",
		 utf8 ? utf8 : "no text");
	append_location(traceback, why, size);
	for (char *c = why; *c; c++) {
		if ((*c == '\n') || (*c == '\r'))
			*c = ' ';
	}
	Py_XDECREF(text);
	Py_XDECREF(value);
	PyErr_Clear();
}

static int attach_locked(void *(*module_init)(void), char *why, size_t size)
{
	PyObject *backend, *module = NULL, *ffi = NULL, *lib = NULL, *embedded = NULL, *result = NULL;
	const char *what = "the cffi runtime (_cffi_backend) cannot be imported";

	backend = PyImport_ImportModule("_cffi_backend");
	if (backend) {
		what = "the cffi module cannot be created";
		/* registered in sys.modules by cffi, which keeps it */
		module = module_init();
	}
	if (module) {
		what = "slurm_banking.boundary.embedded cannot be imported";
		embedded = PyImport_ImportModule("slurm_banking.boundary.embedded");
	}
	if (embedded) {
		what = "slurm_banking.boundary.embedded.attach failed";
		ffi = PyObject_GetAttrString(module, "ffi");
		lib = PyObject_GetAttrString(module, "lib");
	}
	if (ffi && lib)
		result = PyObject_CallMethod(embedded, "attach", "OO", ffi, lib);
	if (!result)
		take_exception(what, why, size);
	Py_XDECREF(backend);
	Py_XDECREF(embedded);
	Py_XDECREF(ffi);
	Py_XDECREF(lib);
	Py_XDECREF(result);
	return result ? 0 : -1;
}

extern int banking_python_attach(void *(*module_init)(void), char *why, size_t size)
{
	PyGILState_STATE state = PyGILState_Ensure();
	int rc = attach_locked(module_init, why, size);

	PyGILState_Release(state);
	return rc;
}
