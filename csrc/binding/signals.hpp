// What both extensions ask of Python while the core works: whether a signal, such as that of Ctrl-C, has
// come.
#pragma once

#include <Python.h>

#include "../interrupt.hpp"

namespace nca {

// For a call that is about to be made, with the lock of the interpreter held. When it was interrupted the
// handler's exception, such as KeyboardInterrupt, is set. Handlers run in Python's main thread alone: calls
// of others are not interrupted. A handler may run and raise here, too: look whether an exception is set.
inline Interrupt python_signals() {
    PyObject* threading = PyImport_ImportModule("threading");
    PyObject* thread = threading ? PyObject_CallMethod(threading, "main_thread", nullptr) : nullptr;
    PyObject* ident = thread ? PyObject_GetAttrString(thread, "ident") : nullptr;
    const bool in_main_thread =
        ident && PyLong_Check(ident) && PyLong_AsUnsignedLongMask(ident) == PyThread_get_thread_ident();
    Py_XDECREF(ident);
    Py_XDECREF(thread);
    Py_XDECREF(threading);
    if (!in_main_thread)
        return {};
    const auto asked = [](void*) noexcept {
        const PyGILState_STATE held = PyGILState_Ensure();
        const bool raised = PyErr_CheckSignals() != 0;
        PyGILState_Release(held);
        return raised;
    };
    return {asked, nullptr};
}

} // namespace nca
