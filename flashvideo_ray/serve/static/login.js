/** Who is here; a token where one is asked for. */

import * as api from "./api.js";
import { byId } from "./dom.js";

const SIGNED_IN = "signed-in"; // scripts cannot see the cookie

/** Resolves once the service knows the caller. @param {import("./store.js").Store} store */
export async function enter(store) {
  store.me = await api.me();
  byId("log-out").addEventListener("click", async () => {
    await api.logOut().catch(() => {});
    localStorage.removeItem(SIGNED_IN);
    location.reload();
  });
  byId("log-out").hidden = store.me?.login_needed || !localStorage.getItem(SIGNED_IN);
  if (!store.me?.login_needed) return;
  const dialog = /** @type {HTMLDialogElement} */ (byId("login"));
  dialog.addEventListener("cancel", (event) => event.preventDefault());
  dialog.showModal();
  await new Promise((resolve) => {
    byId("login-form").addEventListener("submit", async (event) => {
      event.preventDefault();
      try {
        await api.logIn(/** @type {HTMLInputElement} */ (byId("token")).value.trim());
        store.me = await api.me();
        dialog.close();
        localStorage.setItem(SIGNED_IN, "yes");
        byId("log-out").hidden = false;
        resolve(undefined);
      } catch (error) {
        byId("login-error").textContent = /** @type {Error} */ (error).message;
      }
    });
  });
}
