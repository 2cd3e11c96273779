/* A Python extension that takes every table from its capsule, and links nothing of Trimaran. */
#include <Python.h>
#include <trimaran/api.h>

static PyObject *sizes(PyObject *module, PyObject *arguments)
{
    const trimaran_raftlog_api *raftlog = trimaran_import_raftlog();
    const trimaran_watchindex_api *watchindex = trimaran_import_watchindex();
    const trimaran_encap_api *encap = trimaran_import_encap();
    trimaran_watchindex *index;

    (void)module;
    (void)arguments;
    if (raftlog == NULL || watchindex == NULL || encap == NULL)
        return NULL;
    if (raftlog->size != sizeof *raftlog || watchindex->size != sizeof *watchindex
        || encap->size != sizeof *encap || watchindex->create(1, &index) != 0) {
        PyErr_SetString(PyExc_RuntimeError, "a table is not what the header says");
        return NULL;
    }
    size_t count = watchindex->count(index);
    watchindex->destroy(index);
    return PyLong_FromSize_t(count);
}

static PyMethodDef methods[] = {{"sizes", sizes, METH_NOARGS, NULL}, {NULL, NULL, 0, NULL}};
static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, "extension", NULL, -1, methods,
                                        NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit_extension(void)
{
    return PyModule_Create(&definition);
}
